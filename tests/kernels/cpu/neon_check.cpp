// The NEON kernels against the plain C++ ones on the same bytes: products, gates, sums of cache rows.
// Built and run by test_neon.py, under an emulator where the machine is no AArch64. Prints what differs.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core.h"

using namespace moegauge;

namespace {

const Kernels *const NEON = neon_kernels(), *const PLAIN = plain_kernels();
int wrong = 0;

float unit() { return static_cast<float>(std::rand() % 2001 - 1000) / 1000.0f; }

void compare(const char *what, long a, long b, long c, const std::vector<float> &got, const std::vector<float> &expected) {
    float largest = 0;
    for (float v : expected) largest = std::fmax(largest, std::fabs(v));
    for (size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(got[i] - expected[i]) <= 1e-4f * largest)) {
            std::printf("%s %ld %ld %ld: output %zu is %g, not %g\n", what, a, b, c, i, got[i], expected[i]);
            ++wrong;
            return;
        }
}

void scale(int64_t format, uint8_t *four) {  // four bytes of scales near 1
    const Scale kind = TRAITS[format].scale;
    if (kind == Scale::E8M0 || kind == Scale::E4M3) {
        for (int i = 0; i < 4; ++i) four[i] = static_cast<uint8_t>(kind == Scale::E8M0 ? 120 + std::rand() % 12 : 0x30 + std::rand() % 16);
    } else if (kind == Scale::BF16) {
        const uint16_t halves[2] = {static_cast<uint16_t>(0x3F00 + std::rand() % 128), static_cast<uint16_t>(0x3F00 + std::rand() % 128)};
        std::memcpy(four, halves, 4);
    } else {
        const float one = 1.5f + unit() / 2;
        std::memcpy(four, &one, 4);
    }
}

void products(int64_t format, int64_t interleaved, int64_t tokens) {
    const int64_t rows = 24, columns = 256;
    std::vector<uint8_t> weights(static_cast<size_t>(rows * columns * 4 + 65536)), scales(static_cast<size_t>(rows * columns * 4));
    const Element kind = TRAITS[format].element;  // finite codes of it
    const int mask = kind == Element::E4M3 ? 0xBF : kind == Element::BF16 || kind == Element::F32 ? 0x3F : 0xFF;
    for (auto &w : weights) w = static_cast<uint8_t>(std::rand() & mask);
    for (size_t i = 0; i < scales.size(); i += 4) scale(format, &scales[i]);
    const float tensor = 0.5f;
    const Matrix matrix{weights.data(), scales.data(), &tensor, 0, 0, 0, rows, columns, format, interleaved};
    std::vector<float> x(static_cast<size_t>(tokens * columns));
    for (auto &v : x) v = unit();
    std::vector<std::vector<float>> outputs;
    for (const Kernels *k : {NEON, PLAIN}) {
        const size_t one = k->prepared_bytes(format, columns);
        std::vector<char> prepared(one * static_cast<size_t>(tokens));
        std::vector<float> y(static_cast<size_t>(tokens * rows), NAN);
        std::vector<const void *> in;
        std::vector<float *> out;
        for (int64_t t = 0; t < tokens; ++t) {
            char *p = prepared.data() + one * static_cast<size_t>(t);
            k->prepare(format, x.data() + t * columns, columns, p);
            in.push_back(p);
            out.push_back(y.data() + t * rows);
        }
        k->rows(matrix, 0, rows, in.data(), tokens, out.data(), 8192);
        outputs.push_back(y);
    }
    compare("format", format, interleaved, tokens, outputs[0], outputs[1]);
}

void gates() {
    std::vector<float> gate, up;
    for (int i = -500; i <= 500; ++i) gate.push_back(static_cast<float>(i) / 5), up.push_back(unit());
    std::vector<std::vector<float>> outputs;
    for (const Kernels *k : {NEON, PLAIN}) {
        std::vector<float> y(gate.size());
        k->gate(gate.data(), up.data(), static_cast<int64_t>(gate.size()), y.data());
        outputs.push_back(y);
    }
    compare("gate", 0, 0, 0, outputs[0], outputs[1]);
}

void mixes(int64_t format) {
    const int64_t heads = 5, width = 72, pitch = 80, tokens = 64, element = TRAITS[format].row_bytes(1);
    std::vector<uint8_t> cache(static_cast<size_t>(tokens * pitch * element + 8192));
    for (auto &c : cache) c = static_cast<uint8_t>(std::rand() & 0x3F);
    std::vector<float> shares(static_cast<size_t>(heads * tokens));
    for (auto &s : shares) s = unit();
    std::vector<std::vector<float>> outputs;
    for (const Kernels *k : {NEON, PLAIN}) {
        std::vector<float> y(static_cast<size_t>(heads * width));
        std::vector<const float *> p;
        std::vector<float *> out;
        for (int64_t h = 0; h < heads; ++h) p.push_back(shares.data() + h * tokens), out.push_back(y.data() + h * width);
        k->mix(format, cache.data(), pitch * element, tokens, width, p.data(), out.data(), heads);
        outputs.push_back(y);
    }
    compare("mix", format, 0, 0, outputs[0], outputs[1]);
}

}  // namespace

int main() {
    if (!NEON) return std::puts("not built for AArch64"), 2;
    for (int64_t format = 0; format < FORMATS; ++format)
        for (int64_t interleaved = 0; interleaved < 2; ++interleaved)
            for (int64_t tokens : {1, 2, 3, 4, 7}) products(format, interleaved, tokens);
    gates();
    for (int64_t format = 0; format < FORMATS; ++format)  // caches have no scales: those of fp8 are left out
        if (TRAITS[format].element == Element::BF16 || TRAITS[format].element == Element::E4M3) mixes(format);
    return wrong != 0;
}
