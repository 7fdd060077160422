package layer_test

import (
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apparate/apparate/snapshotter/cache/cachetest"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
)

// line is a blob over a line of known speed, whose answers take long.
type line struct {
	*blob
	rate   int64
	free   float64
	answer time.Duration
}

func (b line) Worth() int64                          { return b.rate * b.answer.Milliseconds() / 1000 }
func (b line) Line() (bytesASecond int64, f float64) { return b.rate, b.free }

// TestEager: readers that wait long, for answers and not for bytes, make a layer eager.
func TestEager(t *testing.T) {
	w := build(t, plan{seed: 1, files: slices.Repeat([]int64{1 << 20}, 16), chunk: 64 << 10, stored: true})
	for _, test := range []struct {
		name   string
		free   float64
		answer time.Duration
		rest   int64         // seconds that all of it takes
		wait   time.Duration // of each read
		reads  int
		want   bool
	}{
		{"many waits", 0.9, 90 * time.Millisecond, 16, 100 * time.Millisecond, 20, true},
		{"few", 0.9, 90 * time.Millisecond, 16, 100 * time.Millisecond, 10, false},
		{"a short pull, and less than a second", 0.9, 90 * time.Millisecond, 1, 100 * time.Millisecond, 9, false},
		{"the line is in use", 0.7, 90 * time.Millisecond, 16, 100 * time.Millisecond, 20, false},
		{"for the machine", 0.9, 20 * time.Millisecond, 16, 100 * time.Millisecond, 20, false},
		{"nothing is known of the line", 0, 0, 0, 100 * time.Millisecond, 20, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &blob{answer: func(int, int64, int64) (io.Reader, error) {
					time.Sleep(test.wait)
					return nil, nil
				}}
				b.raw = w.raw
				at := line{b, 0, test.free, test.answer}
				if test.rest > 0 {
					at.rate = int64(len(w.raw)) / test.rest
				}
				l := layer.New("test", w.idx, at, nil, layer.Options{Coalesce: -1, ReadAhead: -1, Logger: quiet()})
				for i := range test.reads {
					if err := w.read(t, l, int64(i)<<16, 100); err != nil {
						t.Fatal(err)
					}
				}
				if got := l.Eager(); got != test.want {
					t.Errorf("eager: %v after %d waits of %v, want %v", got, test.reads, test.wait, test.want)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestEagerBeatsManyWaits: reads in random places one after the other, of a registry that
// takes long to answer, take not much longer than a pull of everything.
func TestEagerBeatsManyWaits(t *testing.T) {
	const members, answer, pull = 512, 25 * time.Millisecond, 5 * time.Second
	w := build(t, plan{seed: 2, files: []int64{members << 16}, chunk: 64 << 10, stored: true})
	places := rand.New(rand.NewPCG(1, 2)).Perm(members)
	synctest.Test(t, func(t *testing.T) {
		b := &blob{raw: w.raw}
		rate := int64(len(w.raw)) / int64(pull/time.Second)
		shared := make(chan struct{}, 1)
		b.answer = func(_ int, off, n int64) (io.Reader, error) {
			time.Sleep(answer)
			return &paced{w.raw[off : off+n], rate, shared}, nil
		}
		gate := &prefetch.Gate{}
		l := layer.New("test", w.idx, line{b, rate, 0.9, answer}, cachetest.NewMem(w.idx), layer.Options{Coalesce: -1, Gate: gate, Logger: quiet()})
		r := prefetch.New(prefetch.Options{Delay: 30 * time.Second, Gate: gate})
		go r.Run(t.Context())
		r.Add("test", l)
		began := time.Now()
		for _, k := range places {
			if err := w.read(t, l, int64(k)<<16, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
		took, alone := time.Since(began), members*answer+pull
		t.Logf("%v; %v alone, a pull %v", took, alone, pull)
		if took > pull*17/10 || took > alone/2 {
			t.Errorf("%d reads took %v, a pull takes %v, they alone %v", len(places), took, pull, alone)
		}
		r.Close()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// paced is a response over a line of so many bytes a second that all responses share.
type paced struct {
	p      []byte
	rate   int64
	shared chan struct{}
}

func (r *paced) Read(p []byte) (int, error) {
	if len(r.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 16<<10)], r.p)
	r.p = r.p[n:]
	r.shared <- struct{}{}
	time.Sleep(time.Duration(int64(n) * int64(time.Second) / r.rate))
	<-r.shared
	return n, nil
}
