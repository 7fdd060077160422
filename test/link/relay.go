package link

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// relay serves the connections of a listener, until it is closed.
func relay(l net.Listener, wg *sync.WaitGroup, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed
		}
		wg.Go(func() { serve(c) })
	}
}

// direction is how bytes pass in one direction of a connection. The functions may be nil.
type direction struct {
	// delay is how long each takes.
	delay time.Duration
	// size is how many pass at a time, depth how many such pieces may be under way: a
	// full queue stops the reading, as a full TCP window would.
	size, depth int
	// before sees the bytes when they come and says how much longer they take.
	before func([]byte) time.Duration
	// reserve books bytes that are about to go and says when the last may have gone.
	reserve func(n int) time.Time
	// after sees how many have gone.
	after func(n int)
}

// tunnel passes a client's connection on to target, until one of them ends or ctx does.
func tunnel(ctx context.Context, client net.Conn, target string, handshake time.Duration, up, down direction) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { _ = client.Close() }()
	if !sleepUntil(ctx, time.Now().Add(handshake)) {
		return
	}
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return // the client sees a closed connection
	}
	defer func() { _ = server.Close() }()
	// A blocked read or write ends only when its connection closes.
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { up.carry(ctx, cancel, server, client) })
	wg.Go(func() { down.carry(ctx, cancel, client, server) })
	wg.Wait()
}

// maxPiece is the largest direction.size.
const maxPiece = 128 << 10

// pieces are what passes at a time.
var pieces = sync.Pool{New: func() any { return new([maxPiece]byte) }}

// piece is bytes on their way.
type piece struct {
	data *[maxPiece]byte
	n    int
	due  time.Time
}

// carry moves bytes from src to dst until src ends; a failure on either side ends the
// connection.
func (d direction) carry(ctx context.Context, cancel context.CancelFunc, dst, src net.Conn) {
	queue := make(chan piece, d.depth)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(queue)
		if !d.read(ctx, src, queue) {
			cancel()
		}
	})
	defer wg.Wait()
	for p := range queue {
		due := p.due
		if d.reserve != nil {
			if free := d.reserve(p.n); free.After(due) {
				due = free
			}
		}
		if sleepUntil(ctx, due) { // else drain the queue so that the reader ends
			if _, err := dst.Write(p.data[:p.n]); err != nil {
				cancel()
			} else if d.after != nil {
				d.after(p.n)
			}
		}
		pieces.Put(p.data)
	}
	if t, ok := dst.(*net.TCPConn); ok {
		_ = t.CloseWrite() // already closed where the connection failed
	}
}

// read sends what comes from src into queue; it is false when src failed.
func (d direction) read(ctx context.Context, src net.Conn, queue chan<- piece) bool {
	for {
		p := piece{data: pieces.Get().(*[maxPiece]byte)}
		n, err := src.Read(p.data[:d.size])
		if n > 0 {
			p.n, p.due = n, time.Now().Add(d.delay)
			if d.before != nil {
				p.due = p.due.Add(d.before(p.data[:n]))
			}
			select {
			case queue <- p:
			case <-ctx.Done():
				return true
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
	}
}
