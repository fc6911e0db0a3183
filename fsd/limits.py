"""What files and requests of strangers may ask of this machine; more is refused in a sentence.

A small file can hold a huge picture, a list that never ends, or another name for the whole disk.
docs/data.md and docs/use.md name these numbers.
"""

from pathlib import PurePosixPath

MiB = 2**20
IMAGE_PIXELS = 200_000_000  # of one picture: 600 MB once decoded
IMAGE_SIDE = 65_500  # pixels; JPEG can have no more
IMAGE_BYTES = 512 * MiB
BATCH_PIXELS = 50_000_000  # of pictures that are held at a time, beyond the first
# Of a file that is read whole, by its ending; COCO's largest annotation file has 450 MiB.
TEXT_BYTES = {".xml": 16 * MiB, ".txt": 256 * MiB, ".csv": 256 * MiB, ".json": 2048 * MiB}
YAML_BYTES = 1 * MiB
SERVED_BYTES = 20 * MiB  # of one image file in a request
SERVED_PIXELS = 50_000_000  # of one image, and of all images of a request together
SERVED_ROWS = 64  # images of a request


def most_bytes(name: str) -> int:
    """How large a file of that name may be."""
    ending = PurePosixPath(name.lower()).suffix
    if ending in (".yaml", ".yml"):
        return YAML_BYTES
    return TEXT_BYTES.get(ending, IMAGE_BYTES)
