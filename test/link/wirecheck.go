package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Measured is what a wire was found to be.
type Measured struct {
	Bits float64       `json:"bits_per_second"`
	RTT  time.Duration `json:"rtt_ns"`
	// Burst is how much of the bandwidth may pass at once.
	Burst time.Duration `json:"burst_ns"`
}

// Tune measures the wire, corrects its delay by what the machine itself adds and its
// token bucket by how late the machine's timers are, and measures again: it returns an
// error when, in a few tries, the rate is never twice in a row off by at most 8 % and the
// round trip by at most 10 %. Measurements rest on it, so it runs before them, and not in
// a test: it is the machine that is checked.
func (w *Wire) Tune(ctx context.Context) (Measured, error) {
	const tries = 24
	var last error
	good := false // a single good one may be luck
	for range tries {
		m, err := w.measure(ctx)
		if err != nil {
			return m, fmt.Errorf("measuring the wire: %w", err)
		}
		off := m.RTT - w.shape.RTT
		rate := m.Bits / float64(w.shape.Bits)
		switch {
		case off > w.shape.RTT/10 || off < -w.shape.RTT/10:
			last = fmt.Errorf("round trip %v, want %v", m.RTT, w.shape.RTT)
			w.mu.Lock()
			w.delay = max(0, w.delay-min(max(off/2, -w.shape.RTT/8), w.shape.RTT/8))
			w.mu.Unlock()
		case rate < 0.92 || rate > 1.08:
			last = fmt.Errorf("rate %.1f Mbit/s, want %.1f", m.Bits/1e6, float64(w.shape.Bits)/1e6)
			if rate < 1 {
				if err := w.loosen(); err != nil {
					return m, fmt.Errorf("tuning the wire: %w", err)
				}
			}
		case good:
			return m, nil
		default:
			good = true
			continue
		}
		good = false
	}
	return Measured{}, fmt.Errorf("the wire is not what it claims, measured %d times (is the machine busy?): %w", tries, last)
}

// measure sends bytes to and fro through a relay with the wire's own delay, on the
// wire's own interfaces.
func (w *Wire) measure(ctx context.Context) (m Measured, err error) {
	source, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return m, err
	}
	size := w.shape.Bits / 8 / 4 // a quarter of a second
	var wg sync.WaitGroup
	wg.Go(func() { answer(source, size) })
	defer wg.Wait()
	defer func() { err = errors.Join(err, source.Close()) }()
	// No one else is on the wire yet: the next connection is ours.
	set := func(target string) {
		w.mu.Lock()
		w.target = target
		w.mu.Unlock()
	}
	target, _ := w.settings()
	set(source.Addr().String())
	defer set(target)

	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", w.Addr())
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return m, err
	}
	one := make([]byte, 1)
	exchange := func(send byte) error {
		if _, err := c.Write([]byte{send}); err != nil {
			return err
		}
		_, err := io.ReadFull(c, one)
		return err
	}
	if err := exchange(0); err != nil { // pays for the handshake
		return m, err
	}
	var trips []time.Duration
	for range 15 {
		start := time.Now()
		if err := exchange(0); err != nil {
			return m, err
		}
		trips = append(trips, time.Since(start))
	}
	slices.Sort(trips)
	m.Burst = w.burst
	m.RTT = trips[len(trips)/4] // those that had to wait for the processor do not count
	if err := exchange('+'); err != nil {
		return m, err
	}
	start := time.Now()
	n, err := io.Copy(io.Discard, c)
	m.Bits = float64(n) * 8 / time.Since(start).Seconds()
	return m, err
}
