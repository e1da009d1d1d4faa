import numpy as np

from benchmarks.parts import evaluation


def test_both_ways_agree_on_a_small_set():
    timings = evaluation.compare(evaluation.synthetic_actions(num_videos=13, num_actions=2))
    assert [timing.metric for timing in timings] == ["Kendall's tau", "AP@5/10/15"]
    assert all(timing.difference < 1e-12 for timing in timings)


def test_embeddings_are_seeded_and_tell_the_phase():
    first, again = (evaluation.synthetic_actions(num_videos=5, num_actions=1)[0] for _ in range(2))
    assert all(map(np.array_equal, first.embeddings, again.embeddings))
    assert [len(video) for video in first.embeddings] == [len(classes) for classes in first.labels]
    assert 0.8 < evaluation.precisions_of(first).mean() < 1


def test_what_only_one_way_defines_is_an_infinite_difference():
    taus = np.array([[0.5, np.nan]])
    assert evaluation._difference([taus], [taus + 0.25]) == 0.25
    assert evaluation._difference([taus], [np.array([[0.5, 0.5]])]) == np.inf


def test_the_table_sums_both_metrics():
    table = evaluation.comparison_table(
        [evaluation.Timing("one", 1.0, 30.0, 1e-16), evaluation.Timing("other", 3.0, 50.0, 2e-16)], "title"
    )
    assert [row[0] for row in table.rows] == ["one", "other", "together"]
    assert table.rows[-1] == ("together", "4.00", "80.00", "20.0", "2.0e-16")
