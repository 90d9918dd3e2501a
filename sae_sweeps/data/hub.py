"""A data set of the Hugging Face Hub, read through `datasets`."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, final

from annotated_types import Ge, Gt, Lt

from sae_sweeps.data import documents
from sae_sweeps.data.token_rows import RowOptions, packed_rows
from sae_sweeps.interfaces import Data, Rows, Split
from sae_sweeps.marks import Birth, Idle


@final
class Hub(Data):
    """Rows of a column's values, in the data set's own order, packed once (see `token_rows`).

    `dataset` may also be a folder. Once packed, neither network nor data set is needed; a
    `revision` of None is then whatever was the newest. `streaming` changes no row.

    Raises:
        ConfigError: the data set, its split or its column cannot be had, or too few tokens.
    """

    def __init__(
        self,
        *,
        dataset: str,
        config: str | None,
        split: str,
        column: str,
        revision: str | None,
        streaming: Annotated[bool, Idle()],
        context_tokens: Annotated[int, Ge(3)],
        separator: Literal["bos", "eos", "none"],
        special_strings: Annotated[bool, Birth(True)],
        held_out_share: Annotated[float, Gt(0), Lt(1)],
        train_tokens: Annotated[int | None, Ge(1)],
        held_out_tokens: Annotated[int | None, Ge(1)],
    ) -> None:
        self.node: dict[str, Any] = {
            **{"dataset": dataset, "config": config, "split": split, "column": column},
            **{"revision": revision, "streaming": streaming},
        }
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
        yield from judging.data_sets_can_be_had(config)

    @staticmethod
    def cache_bytes(config: Mapping[str, Any]) -> int | None:
        from sae_sweeps.data import documents, judging

        node = config["data"]
        return judging.cache_bytes(config, documents.hub_source(node), node["train_tokens"])

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        source = documents.hub_source(self.node)
        return packed_rows(
            split, tokenizer, self.given, source, lambda: documents.of_data_set(self.node)
        )
