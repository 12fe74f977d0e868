"""The order of rows between flows, and what is kept free for others."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fuseline.serve.batching.flows import FlowKey, add_rows, leaf_of, new_tree, next_leaf, rows_until, serve, size_class
from fuseline.serve.batching.requests import BULK, INTERACTIVE
from fuseline.serve.batching.standing import KEPT_FREE, SENDER_SECONDS, Senders, Standing, room_for

KEYS = st.builds(FlowKey, st.sampled_from((INTERACTIVE, BULK)), st.sampled_from("abc"), st.integers(0, 3))


def test_a_size_class_is_one_more_for_each_doubling_of_a_small_request():
    assert [size_class(rows, 4) for rows in (1, 4, 5, 8, 9, 16, 17, 128)] == [0, 0, 1, 1, 2, 2, 3, 5]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEYS, st.integers(1, 40), min_size=1, max_size=12), st.data())
def test_a_flow_is_served_within_the_rows_that_were_predicted(waiting, data):
    root = new_tree()
    for key, rows in waiting.items():
        add_rows(leaf_of(root, key), rows)
    key = data.draw(st.sampled_from(sorted(waiting)))
    leaf, predicted = leaf_of(root, key), rows_until(root, key, waiting[key]).total
    assert sum(waiting.values()) == root.rows == root.waiting
    served = 0
    while leaf.rows:
        serve(next_leaf(root), 1)
        served += 1
    # Each rival may be a row ahead of its share, and a bulk row is worth nine.
    assert served <= predicted + len(waiting) + 10


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, st.integers(1, 9), st.booleans()), max_size=60))
def test_every_row_is_served_once_whatever_comes_and_leaves(actions):
    root, left = new_tree(), {}
    for key, rows, comes in actions:
        if comes or not left.get(key):
            add_rows(leaf_of(root, key), rows)
            left[key] = left.get(key, 0) + rows
        elif rows & 1:
            add_rows(leaf_of(root, key), -left.pop(key))
        else:
            serve(next_leaf(root), 1)
            left = {each: leaf_of(root, each).rows for each in left}
        assert root.rows == sum(left.values())
    while root.rows:
        serve(next_leaf(root), 1)
    assert root.waiting == root.busy == 0


def test_who_is_above_a_share_and_bulk_leave_room_unless_nothing_of_theirs_waits():
    def room(waiting_rows, rows, **standing):
        return room_for(Standing(0, 0, **standing), waiting_rows, rows, 128)

    kept = 128 - 128 // KEPT_FREE
    assert room(100, 1, client_rows=100, clients=1) == 128
    assert room(100, 1, client_rows=50, clients=3) == kept
    assert room(100, 1, client_rows=20, clients=3) == 128
    assert room(0, 128, client_rows=0, clients=3) == 128
    assert room(100, 1, priority=BULK) == kept
    assert room(0, 128, priority=BULK) == 128


def test_a_client_counts_for_a_while_after_its_last_request():
    senders = Senders()
    assert senders.note("a", 0.0) == 1
    assert senders.note("b", 1.0) == 2
    assert senders.note("b", 1.0 + SENDER_SECONDS) == 1
    for _ in range(20):
        senders.count("b", 2, 4.0)
    assert senders.rows_per_s("b", 4.5) > 10
