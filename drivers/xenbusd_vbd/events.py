"""The events of the log that this driver writes, with one sentence on when it does. Pure."""

EVENTS = {
    "disk.failed": "A disk in use cannot do what was asked of it in the store: resume, or become smaller.",
    "disk.grown": "The disk has more sectors than before, and the other end was notified.",
    "disk.limited": "The limits of requests and bytes in a second have changed; 0 is no limit.",
    "disk.paused": "Requests wait, and the image is closed, until the disk is resumed.",
    "disk.resumed": "The image is open again, and requests are served.",
    "disk.shrunk": "The backend says that the disk has fewer sectors than before.",
    "image.buffered": "Asynchronous I/O is not available for the image; it is read and written through the page cache.",
    "image.failed": "The image refused a read, write, flush or discard, and the guest got an error.",
    "image_server.back": "A new image server has answered, and requests that waited were sent to it.",
    "image_server.failed": "A new image server could not be started; that is tried again after a pause.",
    "image_server.given_up": "No image server answered for too long, and the requests that waited were failed.",
    "image_server.lost": "The image server has gone; requests wait for the next one.",
    "nbd.attached": "The disk is a block device of this guest.",
    "nbd.breach": "A client of a disk's NBD socket broke NBD's protocol, and was cut off.",
    "nbd.failed": "The kernel's NBD client cannot be used or changed; the disk is served on its socket all the same.",
    "nbd.refused": "A client of a disk's NBD socket was turned away.",
}
