"""Every size a stranger chooses, and the most of it that is taken: files, names, numbers, layers, cells, cases.

Past one of them the input is refused in one line, before it has cost more than reading it.
"""

from __future__ import annotations

# Safetensors headers.
HEADER_LIMIT_BYTES = 100_000_000  # of one; safetensors' own limit (MAX_HEADER_SIZE)
CHECKPOINT_LIMIT_BYTES = 250_000_000  # of all headers together; the largest known take some 65 MB (Kimi-K3)
HEADER_LIMIT_VALUES = 10_000_000  # commas and colons: about 900,000 tensors in one file; bounds memory near 1 GB
HEADER_NESTING = 125  # lists and objects in a field: serde_json gives up at 128, the header and the entry counted
HEADER_NUMBER = 1e308  # no reader holds more; the last digits before its limit depend on how one rounds
MAX_DIMENSIONS = 64  # of a tensor

# GGUF headers, within HEADER_LIMIT_BYTES.
GGUF_ALIGNMENT = 1 << 20  # bytes
GGUF_DIMENSIONS = 4  # GGML_MAX_DIMS
GGUF_TENSORS = 200_000  # one file; the largest known have some thousand
GGUF_FIELDS = 10_000  # the largest known have some hundred

# What lies beside them.
INDEX_LIMIT_BYTES = 200_000_000  # the largest released index known has 60 MB (Kimi-K3, 497,000 tensors)
INDEX_LIMIT_VALUES = 10_000_000  # commas and colons of an index
SHARD_LIMIT = 10_000  # files of one checkpoint
NAME_LIMIT_CHARACTERS = 1024  # of a file, a model, a kernel
LISTING_LIMIT_BYTES = 64_000_000  # the Hub's list of a repo: about 400,000 files
READ_LIMIT_BYTES = 4096  # of a tensor that describes a shape
MOST_READS = 256  # such tensors of a checkpoint

# config.json and its like.
DOCUMENT_LIMIT_BYTES = 10_000_000  # of one
DOCUMENT_NESTING = 64  # sections in sections; the deepest known has 7
CONFIG_SECTIONS = 6  # sections of the text decoder in one another
CONFIG_LARGEST = 2**31 - 1  # any number; a vocabulary or a width is far below
MOST_LAYERS = 10_000  # each is looked at; 10^9 of them took 33 s and 5.6 GB
MOST_NUMBERS = 10_000  # layers or experts told by structure; a hostile config may claim any number
MOST_PLACED = 40_000  # modules of all layers that structure looks at; DeepSeek-V3 has 1,048
MOST_MODULES = 10_000  # distinct module names of one checkpoint; the largest known has some hundred
MOST_PATTERNS = 256  # `re:` targets of a quantisation config; the largest known has some dozen
MOST_ALTERNATIVES = 16  # of one pattern
RULES_LIMIT_BYTES = 1_000_000  # of a file of rules

# The Hub cache and results of `count --from`.
CACHE_LIMIT_BYTES = 500_000_000  # of a cached commit
ENTRY_LIMIT_BYTES = 2_000_000_000  # the same decompressed
REF_LIMIT_BYTES = 10_000  # of a cached branch or tag
LINE_LIMIT_BYTES = 500_000_000  # of a result
LIST_LIMIT_BYTES = 100_000_000  # of a list of targets: about four million

# Shapes, records and tables.
SHAPE_LIMIT_BYTES = 50_000_000  # the catalogue's largest, unpacked, has 150 kB
SHAPE_LAYERS = 100_000
SHAPE_NUMBER = 2**53  # beyond it a JSON number is not the integer that was written
RECORD_LIMIT_BYTES = 100_000_000  # 5 kB a case as `bench` writes it: some 20,000
RECORD_CASES = 10_000  # of all records that are read together
RECORD_SAMPLES = 100_000  # of one case: an interval of their median is 2,000 resamplings
TABLE_LIMIT_BYTES = 16_000_000  # CSV; the largest packaged table has 0.1 MB
TABLE_ROWS = 5_000  # the largest packaged table has 583; each is estimated from the others of its group
TABLE_COLUMNS = 100
CELL_CHARACTERS = 2_000  # the longest packaged one has 164
NUMBER_CHARACTERS = 40  # of a cell that holds a number
GROUP_READINGS = 500  # of one system and device: each is estimated from all the others
