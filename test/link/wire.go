package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Network has the addresses of all wires.
const Network = "10.213.0.0/16"

// Shape is how a Wire behaves.
type Shape struct {
	// Bits is the bandwidth of each direction, bits a second.
	Bits int64
	// RTT is the round trip of an exchange.
	RTT time.Duration
	// FirstByte is how much longer the answer to a GET of a blob takes to begin:
	// the time that a registry in a cloud takes to find it.
	FirstByte time.Duration
}

// Wire is a slow network on one machine that costs little of it: the kernel
// limits the bandwidth (a token bucket at both ends of a pair of interfaces into
// a network namespace), and a relay at the far end makes every exchange wait for
// a round trip. A Link does both in this process, which takes more of the
// processor than measurements at 1 Gbit/s can spare.
//
// TCP does not see the delay, so windows are open at once: what the wire does not
// model is slow start and loss. The namespace has no name and the interfaces go
// with it, so nothing stays behind, however the process ends.
type Wire struct {
	shape    Shape
	listener net.Listener
	space    netns.NsHandle
	outer    string // the interface on our side
	meter    meter
	mu       sync.Mutex
	target   string
	delay    time.Duration // in each direction
	burst    time.Duration // how much of the bandwidth may pass at once

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewWire starts a wire of the given shape to target, a host:port on this machine
// that speaks plain HTTP/1.1. It needs root. The caller closes it.
func NewWire(target string, s Shape) (w *Wire, err error) {
	w = &Wire{shape: s, target: target, delay: s.RTT / 2, burst: leastBurst, space: -1}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	if err := w.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("building a wire: %w", err), w.Close())
	}
	w.wg.Go(func() { relay(w.listener, &w.wg, w.serve) })
	return w, nil
}

// Addr is the host:port at which the target is reached over the wire.
func (w *Wire) Addr() string { return w.listener.Addr().String() }

// Counts are the requests and bytes that have passed since the wire was made.
func (w *Wire) Counts() Counts { return w.meter.read() }

// Close ends all connections and removes the namespace with its interfaces.
func (w *Wire) Close() error {
	w.cancel()
	var errs []error
	if w.listener != nil {
		errs = append(errs, w.listener.Close())
	}
	w.wg.Wait()
	// The kernel would remove it a little after the namespace.
	if l, err := netlink.LinkByName(w.outer); w.outer != "" && err == nil {
		errs = append(errs, netlink.LinkDel(l))
	}
	if w.space.IsOpen() {
		errs = append(errs, w.space.Close())
	}
	return errors.Join(errs...)
}

// build makes the namespace, the interfaces, their limits and the listener.
func (w *Wire) build() error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread is in the namespace and ends with the goroutine.
		runtime.LockOSThread()
		done <- w.inside(wires.Add(1))
	}()
	return <-done
}

// wires counts the wires of this process, for their names.
var wires atomic.Int64

// inside makes wire number n on a thread that may enter the new namespace. Each
// wire has a /30 of Network.
func (w *Wire) inside(n int64) error {
	outside, err := netns.Get()
	if err != nil {
		return err
	}
	defer func() { _ = outside.Close() }()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("a network namespace (are you root?): %w", err)
	}
	if w.space, err = netns.Get(); err != nil {
		return err
	}
	here, err := netlink.NewHandleAt(w.space)
	if err != nil {
		return err
	}
	defer here.Close()
	there, err := netlink.NewHandleAt(outside)
	if err != nil {
		return err
	}
	defer there.Close()
	outer := fmt.Sprintf("wire%dn%d", os.Getpid(), n)
	w.outer = outer
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: inner}, PeerName: outer, PeerNamespace: netlink.NsFd(outside)}
	if err := here.LinkAdd(pair); err != nil {
		return err
	}
	near, far, err := free(there, n)
	if err != nil {
		return err
	}
	if err := up(here, inner, far, w.shape.Bits); err != nil {
		return err
	}
	if err := up(there, outer, near, w.shape.Bits); err != nil {
		return err
	}
	w.listener, err = net.Listen("tcp4", net.JoinHostPort(far.String(), "0"))
	return err
}

// free returns the two ends of a /30 of Network that no interface has, looking from
// the one that the process id and n make likely.
func free(h *netlink.Handle, n int64) (near, far net.IP, err error) {
	taken, err := h.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, nil, err
	}
	const all = 1 << 14
	for i := range int64(all) {
		low := (int64(os.Getpid())*16 + n + i) % all * 4
		near, far = net.IPv4(10, 213, byte(low>>8), byte(low+1)), net.IPv4(10, 213, byte(low>>8), byte(low+2))
		if !slices.ContainsFunc(taken, func(a netlink.Addr) bool { return a.IP.Equal(near) }) {
			return near, far, nil
		}
	}
	return nil, nil, fmt.Errorf("no address of %s is free", Network)
}

// up gives one end of the pair its address and its token bucket, and takes it up.
func up(h *netlink.Handle, name string, ip net.IP, bits int64) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: ip.To4(), Mask: net.CIDRMask(30, 32)}}); err != nil {
		return err
	}
	// Segmentation offload makes packets that are no longer than what may pass at once.
	if err := h.LinkSetGSOMaxSize(l, int(min(bucketSize(bits, leastBurst)-2<<10, 64<<10))); err != nil {
		return err
	}
	if err := limit(h, l, bits, leastBurst); err != nil {
		return err
	}
	return h.LinkSetUp(l)
}

// inner is the interface in the namespace.
const inner = "wire"

const (
	// leastBurst is what an idle machine's timers keep.
	leastBurst = 600 * time.Microsecond
	// mostBurst bounds what a whole small answer could otherwise hide in.
	mostBurst = 2400 * time.Microsecond
)

// bucketSize is how many bytes may pass at once.
func bucketSize(bits int64, burst time.Duration) uint64 {
	return max(uint64(float64(bits)/8*burst.Seconds()), 16<<10)
}

// limit sets the token bucket of one end.
func limit(h *netlink.Handle, l netlink.Link, bits int64, burst time.Duration) error {
	rate := uint64(bits / 8)
	size := bucketSize(bits, burst)
	err := h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate,
		Buffer:     netlink.Xmittime(rate, uint32(size)),
		// 50 ms wait in line before any is dropped.
		Limit: uint32(rate/20 + size),
	})
	if err != nil {
		return fmt.Errorf("a token bucket of %d Mbit/s on interface %s: %w", bits/1e6, l.Attrs().Name, err)
	}
	return nil
}

// loosen lets more pass at once, for a machine whose timers are late: what the bucket
// does not hold meanwhile is lost to the rate.
func (w *Wire) loosen() error {
	if w.burst >= mostBurst {
		return nil
	}
	w.burst = min(w.burst*3/2, mostBurst)
	here, err := netlink.NewHandleAt(w.space)
	if err != nil {
		return err
	}
	defer here.Close()
	there, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer there.Close()
	for name, h := range map[string]*netlink.Handle{inner: here, w.outer: there} {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if err := limit(h, l, w.shape.Bits, w.burst); err != nil {
			return err
		}
	}
	return nil
}

// sent is how much of what was written to a client may still be in this machine:
// little, or bytes would count long before they arrive.
const sent = 256 << 10

func (w *Wire) serve(client net.Conn) {
	if t, ok := client.(*net.TCPConn); ok {
		_ = t.SetWriteBuffer(sent) // a larger one only counts less exactly
	}
	const depth = 64
	target, delay := w.settings()
	h := &heads{meter: &w.meter, firstByte: w.shape.FirstByte}
	tunnel(w.ctx, client, target, 2*delay,
		direction{delay: delay, size: maxPiece, depth: depth, before: h.request},
		direction{delay: delay, size: maxPiece, depth: depth, after: h.answer})
}

// settings are those of a new connection.
func (w *Wire) settings() (target string, delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.target, w.delay
}
