"""The simulated host: a broker on a UNIX socket, and the host interface that each process opens to it.

Pages are memory files, event channels are pairs of eventfds, the store is the embedded one. The broker makes them all
and passes them on with SCM_RIGHTS; from then on the data path of two domains runs from process to process, without the
broker. The broker keeps account of them: when the last process of a domain ends, however it ends, the domain dies and
everything that it held is given back.

It simulates for development, tests and demonstrations. It guards the broker and the other domains against mistakes
and sudden death, and every access to memory is checked as Xen would check it; it is no security boundary between
processes of one user, who could meddle with each other anyway.
"""
