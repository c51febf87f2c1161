"""The queueing model against closed forms: one resource at a time decides, and the time can be worked out by hand."""

from dataclasses import replace
from math import ceil

import pytest

from moegauge.bench.queueing.latencies import latencies
from moegauge.bench.queueing.multiprocessor import PieceCost, Room, Workload, chain

# Round numbers: one cycle is one ns, one multiprocessor reads 100 bytes in one.
AT = replace(
    latencies("H200"), multiprocessors=10, datasheet=1000, roof_share=1.0, clock=1.0, stall_factor=1.0, issue_share=1.0,
    dram=500, l2=200, fence=400, atomic=300, release=600, edge=900, fetch=0, barrier=20, shared=15, programs_rate=1e9,
)  # fmt: skip
FAST = replace(AT, datasheet=1e9)  # bytes cost nothing; the port to the L2 is as wide as the clock is fast
PORT = 64.0  # bytes a ns: what one multiprocessor can take at 1 GHz


def work(**changes: object) -> Workload:
    plain = {"kernel": "k", "programs": 10, "warps": 1, "resident": 16, "chunks": 10, "run": 1 << 20}
    return Workload(**{**plain, **changes})


def alone(one: Workload, at=AT, mode="graph") -> float:
    """Ns of one launch from the end of the launch before."""
    return chain([one], at, mode)[0][0]


def test_one_piece_waits_for_memory_once():
    size = 640.0
    assert alone(work(chunk_bytes=size)) == pytest.approx(AT.edge + size / PORT + AT.dram)


def test_a_dependent_launch_asks_for_weights_before_it_waits():
    """Its first piece comes while the launch before ends: what is left is the wait and the input."""
    assert alone(work(chunk_bytes=0.0), mode="pdl") == pytest.approx(AT.release + AT.l2)
    first = work(chunk_bytes=0.0, waits_first=True, head=50, wait=50)
    assert alone(first, mode="pdl") == pytest.approx(AT.release + 50 + AT.dram)


@pytest.mark.parametrize("pieces", [1, 2, 5, 8])
def test_two_pieces_on_their_way_make_latency_the_limit(pieces):
    one = work(chunks=10 * pieces, chunk_bytes=0.0)
    assert alone(one) == pytest.approx(AT.edge + ceil(pieces / 2) * AT.dram)


def test_many_warps_make_bandwidth_the_limit():
    """160 warps of 40 pieces: the last byte comes after all of them at the roof, one latency later."""
    one = work(programs=160, chunks=6400, chunk_bytes=1000.0)
    at = replace(AT, datasheet=500)  # 50 bytes a ns each, below the port
    assert alone(one, at) == pytest.approx(AT.edge + 6400 * 1000 / 500 + AT.dram, rel=1e-9)


def test_one_warp_computes_as_its_stalls_say():
    one = work(chunks=50, chunk_bytes=0.0, chunk=PieceCost(alone=700))
    assert alone(one) == pytest.approx(AT.edge + AT.dram + 5 * 700)


@pytest.mark.parametrize(
    ("pipes", "each"), [({"issue": 100}, 100), ({"issue": 100, "alu": 80}, 160), ({"tensor": 90}, 585)]
)
def test_the_busiest_pipe_of_a_scheduler_is_the_limit(pipes, each):
    """16 warps on four schedulers, 30 pieces each: four times thirty times the busiest pipe."""
    piece = PieceCost(alone=each, pipes=tuple(pipes.items()))
    one = work(programs=160, chunks=4800, chunk_bytes=0.0, chunk=piece)
    assert alone(one) == pytest.approx(AT.edge + AT.dram + 4 * 30 * each)


def test_a_shared_row_tile_is_counted_in_and_a_whole_one_is_not():
    shared = work(chunks=40, run=8, chunk_bytes=0.0, tail=10, arrives=1, finish=100, finish_loads=2)
    # Two programs and a half to a row tile; this one holds four pieces of eight.
    assert alone(shared) == pytest.approx(AT.edge + 2 * AT.dram + 10 + 700 + 100 + 2 * AT.l2)
    whole = replace(shared, run=4, alone=60, alone_loads=1)
    assert alone(whole) == pytest.approx(AT.edge + 2 * AT.dram + 60 + AT.l2)
    cold = replace(shared, cold_loads=1)
    assert alone(cold) - alone(shared) == pytest.approx(AT.dram)
    routed = replace(shared, arrives=2)
    assert alone(routed) - alone(shared) == pytest.approx(700)


def test_the_loop_starts_again_for_every_expert_of_a_row_tile():
    together = work(chunks=80, run=8, chunk_bytes=0.0, again=30, again_loads=1)
    apart = replace(together, stream=4)
    assert alone(apart) - alone(together) == pytest.approx(30 + AT.l2)


def test_warps_of_a_program_share_its_pieces_and_meet():
    one = work(chunks=80, chunk_bytes=0.0, chunk=PieceCost(alone=700))
    four = replace(one, warps=4, resident=4)
    assert alone(four) == pytest.approx(AT.edge + AT.dram + 2 * 700 + AT.barrier + AT.shared)


def test_turns_are_shared_out_whole():
    """Twelve turns of four pieces among ten programs: the longest has two."""
    one = work(warps=4, resident=4, chunks=48, step=4, chunk_bytes=0.0, chunk=PieceCost(alone=700))
    assert alone(one) == pytest.approx(AT.edge + AT.dram + 2 * 700 + AT.barrier + AT.shared)


def test_pieces_brought_to_the_cache_before_the_wait_cost_an_l2_trip_behind_it():
    one = work(chunks=50, chunk_bytes=0.0)
    ahead = replace(one, prefetched=4)
    assert alone(one, mode="pdl") == pytest.approx(AT.release + AT.l2 + 2 * AT.dram)
    assert alone(ahead, mode="pdl") == pytest.approx(AT.release + AT.l2 + 2 * AT.l2)


def test_programs_beyond_the_room_start_when_others_end():
    one = work(programs=20, resident=1, chunks=20, chunk_bytes=0.0)
    assert alone(one) == pytest.approx(AT.edge + 2 * AT.dram)


def test_a_dependent_launch_starts_no_earlier_than_room_is_free_and_all_have_let_it():
    one = work(chunk_bytes=0.0, resident=2, waits_first=True, head=1000)
    late = Room(freed=((-5.0, 1.0),), triggered=-100.0)
    early = Room(freed=((-1e6, 1.0),), triggered=-1000.0)
    assert chain([one], AT, "pdl", late)[0][0] == pytest.approx(-5 + 1000 + AT.dram)
    assert chain([one], AT, "pdl", early)[0][0] == pytest.approx(AT.release + AT.dram)


def test_blocks_of_a_cache_are_two_loads_in_turn():
    one = work(chunks=0, turns=3, chunk=PieceCost(alone=40), chunk_bytes=0.0)
    assert alone(one, mode="pdl") == pytest.approx(AT.release + 3 * (2 * AT.dram + 40))


def test_chains_settle_and_pessimistic_is_never_faster():
    one = work(programs=2112, chunks=57344, run=128, whole=False, chunk_bytes=2048.0, head=468, tail=337, finish=1034,
               finish_loads=3, arrives=1, chunk=PieceCost(alone=412, pipes=(("issue", 181), ("alu", 81))))  # fmt: skip
    for device in ("H100", "H200", "B200"):
        nominal, pessimistic = latencies(device), latencies(device, "pessimistic")
        for mode in ("pdl", "graph"):
            times, _ = chain([one] * 5, nominal, mode)
            assert times[2:] == pytest.approx([times[-1]] * 3)
            slower, _ = chain([one] * 5, pessimistic, mode)
            assert slower[-1] > times[-1] > one.bytes / nominal.roof
