"""The user's own text: files and folders of plain text, JSON, Parquet or CSV."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Lt

from sae_sweeps.data import documents
from sae_sweeps.data.token_rows import RowOptions, packed_rows
from sae_sweeps.interfaces import Data, Rows, Split
from sae_sweeps.marks import Birth


@final
class Text(Data):
    """Rows of the documents under `path`, packed once (see `token_rows`).

    A document is a value of `column`, or what `sample_by` says of a text file. Files are told
    from changed ones by path, size and time of change.

    Raises:
        ConfigError: no such files, no such column, or too few tokens.
    """

    def __init__(
        self,
        *,
        path: str,
        column: str,
        sample_by: Literal["document", "paragraph", "line"],
        context_tokens: Annotated[int, Ge(3)],
        separator: Literal["bos", "eos", "none"],
        special_strings: Annotated[bool, Birth(True)],
        held_out_share: Annotated[float, Gt(0), Lt(1)],
        train_tokens: Annotated[int | None, Ge(1)],
        held_out_tokens: Annotated[int | None, Ge(1)],
    ) -> None:
        self.path, self.column, self.sample_by = path, column, sample_by
        self.given = RowOptions(
            context_tokens=context_tokens,
            separator=separator,
            special_strings=special_strings,
            held_out_share=held_out_share,
            train_tokens=train_tokens,
            held_out_tokens=held_out_tokens,
        )

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.data import judging

        yield from judging.tokens_suffice(config)
        yield from judging.text_files_exist(config)

    @staticmethod
    def cache_bytes(config: Mapping[str, Any]) -> int | None:
        from sae_sweeps.data import documents, judging

        node = config["data"]
        source = documents.text_source(node["path"], node["column"], node["sample_by"])
        return judging.cache_bytes(config, source, node["train_tokens"])

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        given = self.path, self.column, self.sample_by
        source = documents.text_source(*given)
        return packed_rows(split, tokenizer, self.given, source, lambda: documents.of_files(*given))
