package service

import "context"

// SocketOwner returns the process that listens on a unix socket, by its number in the
// pid namespace of the host.
func SocketOwner(ctx context.Context, socket string) (pid int, err error) {
	return listener(ctx, socket)
}

// OnThread runs f on a thread that ends with it, so that namespaces which f enters are
// no others than f's. It is not the first thread, whose root is that of the process for
// everybody else.
func OnThread(f func() error) error { return onThread(f) }
