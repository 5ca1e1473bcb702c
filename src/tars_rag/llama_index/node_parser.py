"""`TarsNodeParser`: documents cut into nodes that the embedder reads whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import Field, PrivateAttr

from tars_rag.adapters.arguments import require_kind
from tars_rag.adapters.splitting import Written, form_of, splitter_for
from tars_rag.llama_index.embedding import TarsEmbedding
from tars_rag.splitting.splitter import Splitter

_OURS = ("start", "end")


class TarsNodeParser(NodeParser):
    """Cuts texts as ``tars-rag index`` does, in the tokens of the embedding model.

    What LlamaIndex embeds of a node is its text below its metadata: `heading` and the title are
    there, and room is left for them.

    ```python
    embed_model = TarsEmbedding()
    nodes = TarsNodeParser.for_model(embed_model).get_nodes_from_documents(documents)
    ```
    """

    chunk_tokens: int | None = Field(
        None, description="Tokens in a node, its metadata included; None: all that the model reads."
    )
    overlap: int = Field(
        32, description="The most tokens of whole sentences that a node may repeat."
    )
    form: Written = Field("auto", description="How texts are written: plain, markdown, code, auto.")
    _model: TarsEmbedding | None = PrivateAttr(default=None)

    @classmethod
    def class_name(cls) -> str:
        """The name that serialised settings carry."""
        return "TarsNodeParser"

    @classmethod
    def for_model(cls, embed_model: TarsEmbedding, **settings: Any) -> TarsNodeParser:
        """For the model that will embed the nodes; without it, the default one is meant."""
        require_kind("embed_model", embed_model, TarsEmbedding, "a TarsEmbedding")
        parser = cls(**settings)
        parser._model = embed_model
        return parser

    @property
    def splitter(self) -> Splitter:
        """What cuts.

        Raises:
            ConfigError: The sizes do not fit the model.
        """
        model = self._model or TarsEmbedding()
        return splitter_for(model.embedder, self.chunk_tokens, self.overlap)

    def _parse_nodes(
        self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any
    ) -> list[BaseNode]:
        splitter, parsed = self.splitter, []
        for node in nodes:
            text = node.get_content(MetadataMode.NONE)
            told = node.get_metadata_str(MetadataMode.EMBED)
            chunks = splitter.split(
                text,
                form_of(self.form, node.metadata),
                beside=splitter.count(f"{told}\nheading: \n\n"),
            )
            made = build_nodes_from_splits(
                [chunk.text for chunk in chunks], node, id_func=self.id_func
            )
            for chunk, piece in zip(chunks, made, strict=True):
                piece.metadata = {**node.metadata, "start": chunk.start, "end": chunk.end}
                if chunk.context:  # the headings that the text does not show
                    piece.metadata["heading"] = chunk.context
                hidden = [key for key in _OURS if key not in node.metadata]
                piece.excluded_embed_metadata_keys = [*node.excluded_embed_metadata_keys, *hidden]
                piece.excluded_llm_metadata_keys = [*node.excluded_llm_metadata_keys, *hidden]
                parsed.append(piece)
        return list(parsed)
