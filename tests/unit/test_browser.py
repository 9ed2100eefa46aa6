"""The browser fixture itself: it must see what is wrong with a page, or its silence means nothing."""

import base64

PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
    )
).decode()
SOUND = f"""<!DOCTYPE html><html lang="en"><title>Sound</title><main><h1>Sound</h1>
<img src="data:image/png;base64,{PIXEL}" alt="a pixel"></main></html>"""
FAULTY = """<!DOCTYPE html><html><title></title><img src="http://example.org/a.png">
<img src="data:image/png;base64,AAAA" alt="broken"><p style="width:3000px">wide</p>
<script>undefinedName()</script></html>"""


def test_a_sound_page_has_no_findings(open_page, tmp_path):
    (tmp_path / "sound.html").write_text(SOUND)
    found = open_page(tmp_path / "sound.html", width=390, dark=True)
    found.assert_sound()
    assert found.pictures == 1
    assert found.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches && innerWidth === 390")


def test_every_fault_is_found(open_page, tmp_path):
    (tmp_path / "faulty.html").write_text(FAULTY)
    found = open_page(tmp_path / "faulty.html")
    assert any("undefinedName" in error for error in found.errors)
    assert found.requests == ["http://example.org/a.png"]
    assert len(found.broken) == 2  # one is on the network, one is no image
    assert found.overflow > 0
    assert any("image-alt" in one for one in found.violations)
    assert any("html-has-lang" in one for one in found.violations)
