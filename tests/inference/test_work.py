from fcn_ray.inference.work import order_chunks
from fcn_ray.tables.planfile import ChunkRef


def test_two_jobs_do_not_go_through_the_chunks_the_same_way() -> None:
    chunks = [ChunkRef(f"{number:064x}", 1, number, 4) for number in range(100)]
    assert order_chunks(chunks, None) == chunks
    shared = order_chunks(chunks, "somebody")
    assert shared != chunks
    assert sorted(shared, key=lambda chunk: chunk.chunk_id) == chunks
