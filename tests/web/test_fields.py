"""Names that may repeat."""

from minibg.web.fields import MultiDict, MutableHeaders


def test_a_header_is_set_once_and_appended_often() -> None:
    headers = MutableHeaders([(b"a", b"1"), (b"b", b"2"), (b"a", b"3")])
    headers["A"] = "4"
    headers.append("Set-Cookie", "x")
    headers.append("set-cookie", "y")
    del headers["B"]
    del headers["none"]
    headers.setdefault("a", "5")
    headers.setdefault("C", "6")
    assert headers.raw == [(b"a", b"4"), (b"set-cookie", b"x"), (b"set-cookie", b"y"), (b"c", b"6")]
    assert headers.pop("c") == "6"
    assert headers.getlist("set-cookie") == ["x", "y"]


def test_a_multi_dict_is_a_mapping_of_last_values() -> None:
    fields = MultiDict([("a", 1), ("b", 2), ("a", 3)])
    assert (dict(fields), len(fields), list(fields), fields.getlist("a"), fields.getlist("z")) == (
        {"a": 3, "b": 2},
        2,
        ["a", "b"],
        [1, 3],
        [],
    )
