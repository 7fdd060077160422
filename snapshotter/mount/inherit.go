package mount

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// heldEnv tells a daemon that it runs below a holder; heldVersion is the
	// version of what it inherits, since the two may be of different releases.
	heldEnv, heldVersion = "APPARATE_HELD", "1"
	// storeEnv is set by a unit that has a descriptor store.
	storeEnv = "APPARATE_FD_STORE"

	// Descriptors that the daemon inherits.
	fuseFD     = 3 // the FUSE connection
	listenerFD = 4 // the listening socket
	lockFD     = 5 // the lock of Root, only to be kept open
	readyFD    = 6 // a pipe that takes one byte when the daemon serves
)

// Inheritance is what a daemon gets from its holder.
type Inheritance struct {
	// Fuse is the FUSE connection, for blobfs.Serve.
	Fuse *os.File
	// Listener is the socket. Closing it closes the daemon's copy: calls queue for
	// the next one.
	Listener net.Listener

	ready *os.File
}

// Inherited returns what [Hold] left to this process; ok is false when it was not
// started by Hold. It works once, and what this process starts inherits nothing.
func Inherited() (in Inheritance, ok bool) {
	held := os.Getenv(heldEnv) == heldVersion
	if !held || os.Unsetenv(heldEnv) != nil {
		return Inheritance{}, false
	}
	for fd := fuseFD; fd <= readyFD; fd++ {
		unix.CloseOnExec(fd)
	}
	socket := os.NewFile(listenerFD, "listener")
	l, err := net.FileListener(socket)
	if err := errors.Join(err, socket.Close()); err != nil {
		return Inheritance{}, false // not from a holder after all
	}
	// lockFD stays a bare number: an os.File would be closed when it is collected.
	return Inheritance{Fuse: os.NewFile(fuseFD, "/dev/fuse"), Listener: l, ready: os.NewFile(readyFD, "ready")}, true
}

// Ready tells the holder that this process serves. It is called once.
func (in Inheritance) Ready() error {
	if _, err := in.ready.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell the holder: %w", err)
	}
	return in.ready.Close()
}
