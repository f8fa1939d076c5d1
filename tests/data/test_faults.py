import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal.data.faults import Faults, RowReader, SampleError, TooManyFaults, one_line, unique_keys
from foveal.data.record import Sample


class Rows(RowReader):
    """Rows of which some are broken."""

    def __init__(self, count, broken, **options):
        self.keys = [f"row {row}" for row in range(count)]
        self.broken, self.faults = set(broken), Faults("Rows", **options)

    def load(self, index):
        if index in self.broken:
            raise SampleError(f"{self.keys[index]}: broken", "odd" if index % 2 else "even")
        return Sample(self.keys[index])


def test_iteration_skips_and_counts_and_warns_once(caplog):
    rows = Rows(20, {3, 5, 8}, max_fraction=0.5)
    for _ in range(2):  # each pass counts from zero
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            keys = [sample.key for sample in rows]
        assert keys == [f"row {row}" for row in range(20) if row not in {3, 5, 8}]
        assert rows.faults.counts == {"odd": 2, "even": 1}
        assert rows.faults.keys == {"odd": ["row 3", "row 5"], "even": ["row 8"]}
        expected = "Rows: 3 of 20 samples skipped: 2 × odd (row 3, row 5); 1 × even (row 8)"
        assert [record.getMessage() for record in caplog.records] == [expected]
    assert rows.sound_rows() == [row for row in range(20) if row not in {3, 5, 8}]


def test_no_faults_no_warning(caplog):
    rows = Rows(3, ())
    assert len(list(rows)) == 3
    assert not caplog.records
    assert rows.faults.report() == "Rows: no faults in 3 samples"


def test_strict_raises_at_the_first():
    rows, seen = Rows(20, {3, 5}, strict=True), []
    with pytest.raises(SampleError, match="row 3: broken"):
        seen.extend(rows)
    assert len(seen) == 3
    assert rows.faults.total == 1


@pytest.mark.parametrize(("broken", "stops"), [(range(5), False), (range(6), True), (range(94, 100), True)])
def test_the_fraction_counts_once_enough_is_seen(broken, stops):
    rows = Rows(100, broken)  # 5 % from the 100th on
    if not stops:
        assert len(list(rows)) == 95
        return
    with pytest.raises(TooManyFaults, match=r"6 of 100 samples skipped.*max_fraction=0\.05; repair"):
        list(rows)


def test_it_stops_in_the_middle():
    rows = Rows(1000, range(200, 1000), max_fraction=0.2)
    with pytest.raises(TooManyFaults, match="51 of 251"):
        list(rows)


def test_nothing_usable_is_an_error_however_few():
    with pytest.raises(TooManyFaults, match=r"3 of 3 samples skipped.*no sample is usable"):
        list(Rows(3, range(3), max_fraction=1.0))
    faults = Faults("share")
    faults.record("a", SampleError("a"))
    faults.finish(whole=False)  # a worker's share may be all bad by chance
    with pytest.raises(ValueError, match=r"max_fraction=1\.5"):
        Faults("x", max_fraction=1.5)


def test_only_the_first_names_are_kept():
    rows = Rows(40, range(0, 40, 2), max_fraction=1.0)
    list(rows)
    assert rows.faults.keys["even"] == [f"row {row}" for row in range(0, 10, 2)]
    assert "row 8, …)" in rows.faults.report()


def test_indexing_is_that_of_a_sequence_and_raises():
    rows = Rows(10, {3})
    assert rows[-1].key == "row 9"
    assert [sample.key for sample in rows[:3]] == ["row 0", "row 1", "row 2"]
    assert len(rows) == 10
    with pytest.raises(IndexError):
        rows[10]
    with pytest.raises(SampleError, match="row 3"):
        rows[3]
    assert rows.faults.total == 0  # indexing counts nothing


def test_errors_and_readers_cross_processes():
    error = pickle.loads(pickle.dumps(SampleError("a\nb", "why")))
    assert (str(error), error.reason) == ("a b", "why")
    assert len(list(pickle.loads(pickle.dumps(Rows(5, {1}))))) == 4


def test_one_line():
    assert one_line("a\n b\x1b[31m\udcff é") == "a b\\x1b[31m\\udcff é"


@given(st.lists(st.sampled_from(["a", "a@1", "a@1@2", "b", "a@2"])))
def test_unique_keys(names):
    keys = unique_keys(names)
    assert len(set(keys)) == len(names)
    for row, (key, name) in enumerate(zip(keys, names, strict=True)):
        assert key.startswith(name)
        assert key == name or name in names[:row]


def test_a_reader_that_cannot_load_is_none():
    class Keys(RowReader):
        keys, faults = ("a",), Faults("Keys")

    with pytest.raises(TypeError, match="load"):
        Keys()
