"""tars-rag behind LangChain's interfaces: embeddings, reranking and a hybrid vector store."""

try:
    import langchain_core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "langchain_core":
        raise
    from tars_rag import advice

    msg = (
        "tars_rag.langchain needs langchain-core, which is not installed. "
        f"Install it: {advice.install('langchain')}"
    )
    raise ImportError(msg, name="langchain_core") from error

from tars_rag.langchain.embeddings import TarsEmbeddings
from tars_rag.langchain.rerank import TarsCrossEncoder, TarsRerank
from tars_rag.langchain.retriever import TarsRetriever
from tars_rag.langchain.splitter import TarsSplitter
from tars_rag.langchain.vectorstore import TarsVectorStore

__all__ = [
    "TarsCrossEncoder",
    "TarsEmbeddings",
    "TarsRerank",
    "TarsRetriever",
    "TarsSplitter",
    "TarsVectorStore",
]
