// Package link is a slow network on one machine: a TCP relay on loopback that
// carries all its connections over one link of limited bandwidth, and makes
// every exchange wait for a round trip.
//
// A connection costs a round trip before its first byte passes, as a TCP
// handshake does; then each direction delays what it carries by half of one.
// Bandwidth is shared by all connections, each direction having its own. What
// the link does not model: loss, slow start, and the server's own delays.
package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// segment is how many bytes pass at a time: 0.65 ms at 200 Mbit/s.
const segment = 16 << 10

// burst is how much later than planned a transfer may be and still catch up. It
// covers late timers of a busy machine; an idle link saves up no more than this.
const burst = 5 * time.Millisecond

// Link is a running relay.
type Link struct {
	listener net.Listener
	target   string
	rtt      time.Duration
	down, up bucket

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New starts a relay to target (host:port) on a free port of 127.0.0.1. Each
// direction carries bitsPerSecond in all, 0 meaning unlimited. The caller closes it.
func New(target string, bitsPerSecond int64, rtt time.Duration) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &Link{listener: l, target: target, rtt: rtt}
	k.down.rate, k.up.rate = bitsPerSecond, bitsPerSecond
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.wg.Go(func() { relay(k.listener, &k.wg, k.serve) })
	return k, nil
}

// Addr is the relay's own host:port.
func (k *Link) Addr() string { return k.listener.Addr().String() }

// Bytes returns how many bytes have come down from the target and gone up to
// it, headers of HTTP included, those of TCP not.
func (k *Link) Bytes() (down, up int64) { return k.down.bytes.Load(), k.up.bytes.Load() }

// Close ends all connections and waits for them.
func (k *Link) Close() error {
	k.cancel()
	err := k.listener.Close()
	k.wg.Wait()
	return err
}

func (k *Link) serve(client net.Conn) {
	tunnel(k.ctx, client, k.target, k.rtt, k.direction(&k.up), k.direction(&k.down))
}

// direction is how bytes pass through one of the buckets. As many pieces as fill the
// link for a round trip, and some, may be under way.
func (k *Link) direction(b *bucket) direction {
	return direction{
		delay: k.rtt / 2, size: segment, depth: int(16 + b.rate/8*int64(k.rtt/time.Microsecond)/1e6/(segment/4)),
		reserve: b.reserve, after: func(n int) { b.bytes.Add(int64(n)) },
	}
}

// bucket is the bandwidth of one direction.
type bucket struct {
	rate  int64 // bits a second, 0 for no limit
	bytes atomic.Int64

	mu   sync.Mutex
	free time.Time // when everything reserved so far has passed
}

// reserve books n bytes and returns when the last of them has passed.
func (b *bucket) reserve(n int) time.Time {
	if b.rate == 0 {
		return time.Time{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if earliest := time.Now().Add(-burst); b.free.Before(earliest) {
		b.free = earliest
	}
	b.free = b.free.Add(time.Duration(int64(n) * 8 * int64(time.Second) / b.rate))
	return b.free
}

// sleepUntil waits until t and says whether ctx is still alive then. The Go
// runtime's timers are up to a millisecond late, as much as a round trip, so the
// last part is slept in the kernel; it is too short to need cancelling.
func sleepUntil(ctx context.Context, t time.Time) bool {
	const last = 2 * time.Millisecond
	if d := time.Until(t) - last; d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
	if d := time.Until(t); d > 0 {
		ts := syscall.NsecToTimespec(d.Nanoseconds())
		_ = syscall.Nanosleep(&ts, nil) // a signal ends it early, by less than last
	}
	return ctx.Err() == nil
}

// Check measures a link of the given bandwidth and round trip and returns an
// error when the rate is off by more than 8 % or the round trip by more than
// 10 % and a millisecond. Measurements rest on it, so it runs before them, not
// in a test: it is the machine that is checked. It takes the best of a few tries.
func Check(ctx context.Context, bitsPerSecond int64, rtt time.Duration) error {
	const tries = 4
	var err error
	for range tries {
		if err = check(ctx, bitsPerSecond, rtt); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return fmt.Errorf("the limited link is not what it claims, measured %d times (is the machine busy?): %w", tries, err)
}

func check(ctx context.Context, bitsPerSecond int64, rtt time.Duration) (err error) {
	source, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	size := bitsPerSecond / 8 / 4 // a quarter of a second
	var wg sync.WaitGroup
	wg.Go(func() { answer(source, size) })
	defer wg.Wait()
	defer func() { err = errors.Join(err, source.Close()) }()
	k, err := New(source.Addr().String(), bitsPerSecond, rtt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()

	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", k.Addr())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	one := make([]byte, 1)
	exchange := func() error {
		if _, err := c.Write(one); err != nil {
			return err
		}
		_, err := io.ReadFull(c, one)
		return err
	}
	if err := exchange(); err != nil { // pays for the handshake
		return err
	}
	start := time.Now()
	if err := exchange(); err != nil {
		return err
	}
	if got := time.Since(start); got > rtt+rtt/10+time.Millisecond || got < rtt-rtt/10 {
		return fmt.Errorf("round trip %v, want %v", got, rtt)
	}
	if _, err := c.Write([]byte{'+'}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, one); err != nil {
		return err
	}
	start = time.Now()
	n, err := io.Copy(io.Discard, c)
	if err != nil {
		return err
	}
	got := float64(n) * 8 / time.Since(start).Seconds()
	if want := float64(bitsPerSecond); got < 0.92*want || got > 1.08*want {
		return fmt.Errorf("rate %.1f Mbit/s, want %.1f", got/1e6, want/1e6)
	}
	return nil
}

// answer echoes single bytes to the first client and, after a '+', sends size
// bytes and hangs up.
func answer(l net.Listener, size int64) {
	c, err := l.Accept()
	if err != nil {
		return // closed before anyone came
	}
	defer func() { _ = c.Close() }()
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, one); err != nil {
			return
		}
		if _, err := c.Write(one); err != nil {
			return
		}
		if one[0] == '+' {
			_, _ = c.Write(make([]byte, size)) // a failure shows as a short read there
			return
		}
	}
}
