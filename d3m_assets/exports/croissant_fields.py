"""Fields of images in a Croissant description, the same in every format."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlcroissant import Field, Source


def label_field(source: Source) -> Field:
    """The label of an image as its number, which the record set of classes gives a name."""
    import mlcroissant as mlc

    return mlc.Field(
        id="images/label",
        name="label",
        description="Number of the class in the record set of classes.",
        data_types=[mlc.DataType.INTEGER],
        source=source,
    )


def class_name_field(source: Source) -> Field:
    """The label of an image as the name of its class."""
    import mlcroissant as mlc

    return mlc.Field(id="images/class_name", name="class_name", data_types=[mlc.DataType.TEXT], source=source)
