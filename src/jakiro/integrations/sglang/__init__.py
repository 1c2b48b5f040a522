"""SGLang: heads of ``jakiro export --format eagle-vllm`` under its algorithm ``EAGLE``, with its
dynamic trees. Set ``SGLANG_EXTERNAL_MODEL_PACKAGE=jakiro.integrations.sglang``.

**Never run**: SGLang needs a GPU. Written after the sources of SGLang 0.5.23.
"""
