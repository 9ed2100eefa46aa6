"""What models cost on this machine: ``cmtvision bench`` (runtimes, limits) and ``cmtvision compare`` (models).

Read in this order: ``target`` (what is measured), ``runtimes`` and ``exports`` (the ways to run it), ``measure`` (all
targets in interleaved rounds, each in a process of ``workers``), then what is made of it: ``record`` for ``bench``,
``compare`` and ``comparison`` for ``compare``. Within a process: ``opening``, ``timing``, ``limits``.
"""
