"""`TarsSplitter`: documents cut so that the embedder reads each piece whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import BaseDocumentTransformer, Document

from tars_rag.adapters.arguments import require_all, require_kind
from tars_rag.adapters.splitting import Written, form_of, splitter_for
from tars_rag.langchain.documents import as_documents
from tars_rag.langchain.embeddings import TarsEmbeddings
from tars_rag.retrieval.passage import CONTEXT
from tars_rag.splitting.splitter import Splitter


class TarsSplitter(BaseDocumentTransformer):
    """Cuts texts as ``tars-rag index`` does, in the tokens of the embedding model.

    Has the methods of LangChain's text splitters, without their package.

    ```python
    embeddings = TarsEmbeddings()
    documents = TarsSplitter(embeddings).split_documents(loader.load())
    TarsVectorStore(embeddings, "my-store").add_documents(documents)
    ```
    """

    def __init__(
        self,
        embeddings: TarsEmbeddings | None = None,
        *,
        chunk_tokens: int | None = None,
        overlap: int = 32,
        form: Written = "auto",
    ) -> None:
        """Say for which model.

        Args:
            embeddings: The model that will embed the pieces; None: the default one.
            chunk_tokens: Tokens in a piece, its headings included; None: all that the model reads.
            overlap: The most tokens of whole sentences that a piece repeats, where a paragraph had
                to be cut.
            form: How the texts are written: "plain", "markdown", "code"; "auto": Markdown where
                the metadata's ``source`` ends in .md, else plain.
        """
        self.embeddings = TarsEmbeddings() if embeddings is None else embeddings
        require_kind("embeddings", self.embeddings, TarsEmbeddings, "a TarsEmbeddings")
        self.chunk_tokens, self.overlap, self.form = chunk_tokens, overlap, form

    @property
    def splitter(self) -> Splitter:
        """What cuts.

        Raises:
            ConfigError: The sizes do not fit the model.
        """
        return splitter_for(self.embeddings.embedder, self.chunk_tokens, self.overlap)

    def split_text(self, text: str) -> list[str]:
        """The pieces of a text, as its author wrote them."""
        require_kind("text", text, str, "a string")
        form = form_of(self.form, {})
        return [chunk.text for chunk in self.splitter.split(text, form)]

    def split_documents(self, documents: Iterable[Document]) -> list[Document]:
        """The pieces of documents, which are left as they are.

        Returns:
            Documents with the metadata of theirs and ``chunk``, ``start``, ``end`` (characters)
            and, where there is one, ``heading``. What a `TarsVectorStore` embeds above the text,
            title and headings, is under ``_tars:context``.
        """
        given = list(documents)
        require_all("documents", given, Document, "a Document")
        splitter = self.splitter
        pieces: list[Document] = []
        for document in given:
            title = document.metadata.get("title")
            chunks = splitter.split(
                document.page_content,
                form_of(self.form, document.metadata),
                title=title if isinstance(title, str) else "",
            )
            for number, chunk in enumerate(chunks):
                more: dict[str, Any] = {"chunk": number, "start": chunk.start, "end": chunk.end}
                more |= {"heading": chunk.heading} if chunk.heading else {}
                more |= {CONTEXT: chunk.context} if chunk.context else {}
                key = f"{document.id}#{number}" if document.id else None
                metadata = {**document.metadata, **more}
                pieces.append(Document(id=key, page_content=chunk.text, metadata=metadata))
        return pieces

    def create_documents(
        self, texts: list[str], metadatas: list[dict[str, Any]] | None = None
    ) -> list[Document]:
        """The pieces of texts with their metadata."""
        return self.split_documents(as_documents(texts, metadatas))

    def transform_documents(self, documents: Sequence[Document], **kwargs: Any) -> list[Document]:
        """As `split_documents`."""
        return self.split_documents(documents)
