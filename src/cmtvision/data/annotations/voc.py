"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages/`` and the parts in ``ImageSets/Main/{train,val,trainval,test}.txt``.

``trainval`` stands for the one of train and val that has no list of its own, less what the other one lists.

VOC counts pixels from 1 and includes both ends, so a box from xmin to xmax covers pixels xmin - 1 to xmax of ours.
Objects marked difficult are kept as ordinary ones; ``truncated`` and ``pose`` mean nothing here. The format has boxes
only. Without ImageSets every annotated image counts, and the parts are chosen by seed. Class names are sorted.
"""

from pathlib import Path
from xml.etree import ElementTree

from cmtvision.data.annotations.limits import MAX_TEXT_BYTES, name_below, number, read_bytes, read_text
from cmtvision.data.annotations.raw import RawImage, RawListing, RawObject
from cmtvision.data.listing.class_folders import EXTENSIONS
from cmtvision.data.listing.index import Skipped
from cmtvision.data.listing.splits import long_name
from cmtvision.errors import DataError

ANNOTATIONS, IMAGES, SETS = "Annotations", "JPEGImages", "ImageSets"


class _NoDoctype(ElementTree.TreeBuilder):
    """A document type is where entities are declared that grow without end, or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise DataError("a document type declaration, which annotations do not need")


def is_voc(source: Path) -> bool:
    """Whether a folder has VOC's layout."""
    return (source / ANNOTATIONS).is_dir() and any((source / ANNOTATIONS).glob("*.xml"))


def list_voc(source: Path) -> RawListing:
    """The images and objects of a VOC folder.

    Raises:
        DataError: XML that cannot be read or is no annotation, an image in two parts, a name that leads out of the
            folder.
    """
    listing = RawListing(source.resolve(), "voc")
    folder = source / IMAGES if (source / IMAGES).is_dir() else source / ANNOTATIONS
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in EXTENSIONS}
    annotated = {file.stem: file for file in sorted((source / ANNOTATIONS).glob("*.xml"))}
    parts = image_sets(source, "Main", listing) or dict.fromkeys(annotated)
    for name in sorted((files.keys() | annotated.keys()) - parts.keys()):
        reason = (
            f"in none of the lists in {SETS}/Main" if name in annotated else f"no annotation file in {ANNOTATIONS}/"
        )
        listing.skipped.append(Skipped(files.get(name, annotated.get(name, folder)), reason))
    for name, part in parts.items():
        if name not in annotated:
            listing.skipped.append(Skipped(source / ANNOTATIONS / f"{name}.xml", "no such annotation file"))
            continue
        image_file = files.get(name, folder / f"{name}.jpg")
        path, relative = name_below(listing.root, folder.resolve(), image_file.name, str(annotated[name]))
        image = RawImage(path, relative, part)
        _read_objects(annotated[name], image, listing)
        listing.images.append(image)
    return listing


def image_sets(source: Path, kind: str, listing: RawListing) -> dict[str, str | None]:
    """The names of images in ``ImageSets/<kind>``, each with its part; {} where there are no such lists.

    Raises:
        DataError: an image that is in two parts, a name with a folder in it.
    """
    folder = source / SETS / kind
    files = {name: folder / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    listed = {name: _listed(file, listing) for name, file in files.items() if file.is_file()}
    both = listed.pop("trainval", None)
    if both is not None and not {"train", "val"} <= listed.keys():
        lacking, other = ("val", "train") if "train" in listed else ("train", "val")
        listed[lacking] = {image: where for image, where in both.items() if image not in listed.get(other, {})}
    if "train" in listed and not listed["train"]:
        file = files["train" if files["train"].is_file() else "trainval"]
        raise DataError(f"{file}: names no image to train on")
    parts: dict[str, str | None] = {}
    for part in ("train", "val", "test"):
        for image, where in listed.get(part, {}).items():
            if image in parts:
                named = f"{long_name(str(parts[image]))} and in the {long_name(part)}"
                raise DataError(f"{where}: {image} is in the {named} part; leave it in one of them")
            parts[image] = part
    return parts


def _listed(file: Path, listing: RawListing) -> dict[str, str]:
    """The names of images in a list, without a suffix, each with the line that names it."""
    found: dict[str, str] = {}
    for line_number, line in enumerate(read_text(file).splitlines(), start=1):
        where, cells = f"{file} line {line_number}", line.split()
        image = " ".join(cells[:-1] if len(cells) > 1 and cells[-1] in ("-1", "0", "1") else cells)
        if not image:
            continue
        if "/" in image or "\\" in image or image in (".", ".."):
            raise DataError(f"{where}: {image[:60]!r}, expected the name of an image")
        if Path(image).suffix.lower() in EXTENSIONS:
            image = Path(image).stem
        if image in found:
            listing.left_out.add("an image listed twice, taken once", where)
        found[image] = where
    return found


def _read_objects(file: Path, image: RawImage, listing: RawListing) -> None:
    tree = _parsed(file)
    size = tree.find("size")
    if size is not None:
        height, width = (_whole(size.findtext(key)) for key in ("height", "width"))
        image.declared = (height, width) if height and width else None  # LabelImg writes 0 where it did not know
    known: set[tuple[object, ...]] = set()
    for place, entry in enumerate(tree.iter("object")):
        where = f"{file} object {place}"
        name, corners = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or corners is None:
            raise DataError(f"{where}: expected a name and a bndbox")
        values = [_number(corners.findtext(key), f"{where} {key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        if None in values:
            listing.left_out.add("a box left out: a coordinate that is not a finite number", where)
            continue
        x0, y0, x1, y1 = (value for value in values if value is not None)
        box = (x0 - 1, y0 - 1, x1, y1)
        if (name, box) in known:
            listing.left_out.add("a box listed twice", where)
            continue
        known.add((name, box))
        image.objects.append(RawObject(name, box, where))


def _parsed(file: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_NoDoctype())  # its document types are refused
    try:
        parser.feed(read_bytes(file, MAX_TEXT_BYTES))
        tree = parser.close()
    except DataError as error:
        raise DataError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not XML ({' '.join(str(error).split())[:200]})") from None
    if tree.tag != "annotation":
        raise DataError(f"{file}: its first element is {tree.tag[:40]!r}, expected 'annotation'")
    return tree


def _number(text: str | None, where: str) -> float | None:
    try:
        return number(float(text or ""))
    except ValueError:
        raise DataError(f"{where}: {str(text)[:30]!r} is not a number") from None


def _whole(text: str | None) -> int:
    return int(text) if text and text.strip().isdigit() and len(text) < 10 else 0
