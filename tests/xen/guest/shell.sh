# A shell on the console, for a person.
load xen-blkfront
stty sane
setsid cttyhack sh -i
