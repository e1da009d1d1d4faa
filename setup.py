"""The optional compiled part; everything else is in pyproject.toml."""

from setuptools import Extension, setup

# Loaded with ctypes: it needs no headers of Python, and one file fits all its versions. Without a compiler it is left
# out. No contraction: the same bytes as tensor operations. The flags after that change no value and allow vectors.
FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"]

setup(
    ext_modules=[
        Extension(
            "carl_ray.data._compiled",
            ["carl_ray/data/compiled.c"],
            extra_compile_args=FLAGS,
            optional=True,
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
