"""tars-rag behind LlamaIndex's interfaces: embedding, reranking and a hybrid vector store."""

try:
    import llama_index.core  # noqa: F401
except ModuleNotFoundError as error:
    if error.name not in {"llama_index", "llama_index.core"}:
        raise
    from tars_rag import advice

    msg = (
        "tars_rag.llama_index needs llama-index-core, which is not installed. "
        f"Install it: {advice.install('llama-index')}"
    )
    raise ImportError(msg, name=error.name) from error

from tars_rag.llama_index.embedding import TarsEmbedding
from tars_rag.llama_index.node_parser import TarsNodeParser
from tars_rag.llama_index.rerank import TarsRerank
from tars_rag.llama_index.vectorstore import TarsVectorStore

__all__ = ["TarsEmbedding", "TarsNodeParser", "TarsRerank", "TarsVectorStore"]
