"""A quantizer's text and the spec it stands for."""

import pytest

from qpass.spec import QuantSpec, parse_spec

TEXTS = (
    "int8 tensor asym",
    "int4 channel sym",
    "int2 token asym dynamic",
    "int6 group:64 sym time:10",
    "fp8-e4m3 tensor asym",
    "fp8-e5m2 channel sym",
    "nf4 group:16 sym",
    "log2:4 tensor asym",
    "log-sqrt2:3 token sym time:2",
    "log:8 group:8 asym",
    "int4 tensor asym time:5:range",
    "int8 channel asym time:4:even",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_reads_back(text):
    """Reading a spec's text gives the spec, whatever the default symmetry."""
    for symmetric in (True, False):
        assert str(parse_spec(text, symmetric=symmetric)) == text


def test_symmetry_defaults_to_what_the_place_wants():
    """Weights are symmetric and inputs are not, unless the text says so."""
    assert parse_spec("int8 tensor", symmetric=True).symmetric
    assert not parse_spec("int8 tensor", symmetric=False).symmetric
    assert not parse_spec("int8 tensor asym", symmetric=True).symmetric


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int9 tensor", "'int9' in 'int9 tensor' is not a number format"),
        ("int8", "is not a quantizer"),
        ("int8 row", "'row' in 'int8 row' is not a granularity"),
        ("int8 group:0", "is not a granularity"),
        ("int8 tensor tme:4", "'tme:4' in 'int8 tensor tme:4' means nothing here"),
        ("int8 tensor time:4:tme", "'time:4:tme' in 'int8 tensor time:4:tme' means nothing here"),
        ("int8 tensor time:1:even", "time:1 is a single group"),
        ("int8 tensor dynamic time:4", "takes no time groups"),
        ("nf4 tensor dynamic", "only int formats can be dynamic"),
        ("log-sqrt2:4 token dynamic", "only int formats can be dynamic, not log-sqrt2"),
        ("log3:4 tensor", "'log3:4' in 'log3:4 tensor' is not a number format"),
        ("log:9 tensor", "'log:9' in 'log:9 tensor' is not a number format"),
    ],
)
def test_a_wrong_text_names_the_word(text, said):
    """The error quotes the word that is wrong."""
    with pytest.raises(ValueError) as error:
        parse_spec(text, symmetric=False)
    assert said in str(error.value)


def test_bits_may_differ_by_channel():
    """The widest of several widths is what codes are stored in."""
    assert QuantSpec(bits=(4, 8, 2), granularity="channel").widest == 8
    with pytest.raises(ValueError, match="2 to 8, not 9"):
        QuantSpec(bits=(4, 9))
