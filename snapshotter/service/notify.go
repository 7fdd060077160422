package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// notifySocket hears a daemon say that it is ready (sd_notify(3)). Its directory is
// root's alone, so nobody else is heard.
type notifySocket struct {
	conn *net.UnixConn
	path string
}

func listenNotify(path string) (*notifySocket, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("making the socket on which the daemon says that it is ready: %w", err)
	}
	return &notifySocket{conn: c, path: path}, nil
}

// ready waits for READY=1.
func (n *notifySocket) ready(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = n.conn.SetReadDeadline(time.Unix(1, 0)) }) // fails when it is closed
	defer stop()
	b := make([]byte, 64<<10)
	for {
		size, err := n.conn.Read(b)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if saysReady(string(b[:size])) {
			return nil
		}
	}
}

// saysReady looks for READY=1 among the lines of a message.
func saysReady(message string) bool {
	return slices.Contains(strings.Split(message, "\n"), "READY=1")
}

func (n *notifySocket) close() error {
	err := n.conn.Close()
	if rerr := os.Remove(n.path); !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}
