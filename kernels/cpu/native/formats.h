// Traits of each weight format on the CPU: types of element and scale, and the block that shares a scale.
// A format's name stands here alone; everything else asks its traits. The same table as moegauge.formats.FORMATS, row
// by row: Python compares the two when it loads the core.
#pragma once
#include <cstdint>
#include <utility>

namespace moegauge {

enum class Element : int64_t { F32, BF16, E4M3, INT8, INT4, E2M1 };
enum class Scale : int64_t { NONE, F32, BF16, E8M0, E4M3 };

struct Traits {
    Element element;
    Scale scale;
    int64_t rows, columns;  // of the block that shares a scale; 0 columns: the whole row
    bool tensor_scale;      // one more float32 for the whole matrix

    constexpr int64_t bits() const {
        switch (element) {
            case Element::F32: return 32;
            case Element::BF16: return 16;
            case Element::E4M3: return 8;
            case Element::INT8: return 8;
            default: return 4;
        }
    }
    constexpr int64_t row_bytes(int64_t of_columns) const { return (of_columns * bits() + 7) / 8; }
    constexpr int64_t scale_bytes() const {
        switch (scale) {
            case Scale::NONE: return 0;
            case Scale::F32: return 4;
            case Scale::BF16: return 2;
            default: return 1;
        }
    }
    constexpr bool scales_rows() const { return scale != Scale::NONE && columns == 0; }
    // Scales side by side in a row of blocks.
    constexpr int64_t groups(int64_t of_columns) const { return columns ? (of_columns + columns - 1) / columns : 1; }
};

constexpr Traits TRAITS[] = {
    {Element::F32, Scale::NONE, 1, 0, false},    // f32
    {Element::BF16, Scale::NONE, 1, 0, false},   // bf16
    {Element::E4M3, Scale::F32, 128, 128, false},  // fp8
    {Element::INT8, Scale::F32, 1, 0, false},    // int8
    {Element::INT4, Scale::BF16, 1, 32, false},  // int4
    {Element::INT4, Scale::BF16, 1, 128, false},  // int4_g128
    {Element::E2M1, Scale::E8M0, 1, 32, false},  // mxfp4
    {Element::E4M3, Scale::E8M0, 1, 32, false},  // mxfp8
    {Element::E2M1, Scale::E4M3, 1, 16, true},   // nvfp4
};
constexpr int64_t FORMATS = sizeof TRAITS / sizeof *TRAITS;

}  // namespace moegauge
