package fetch_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/test/registry"
)

// read reads a few ranges one after the other, as a mount does, and fails the test if a
// byte is wrong, an error is not an *Error, or a read outlives its time.
func read(t *testing.T, b fetch.Blob, data []byte) error {
	t.Helper()
	size := int64(len(data))
	for _, r := range [][2]int64{{size - 100, 100}, {0, 1000}, {5000, 20_000}} {
		start := time.Now()
		p := make([]byte, r[1])
		err := fetch.ReadAt(t.Context(), b, p, r[0])
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("a read took %s", took)
		}
		if err != nil {
			if _, ok := errors.AsType[*fetch.Error](err); !ok {
				t.Errorf("error is a %T: %v", err, err)
			}
			if strings.Contains(err.Error(), "secret-") {
				t.Errorf("error has a credential: %v", err)
			}
			return err
		}
		if !bytes.Equal(p, data[r[0]:r[0]+r[1]]) {
			return errWrongBytes
		}
	}
	return nil
}

var errWrongBytes = errors.New("wrong bytes")

// hasty gives up soon, for tests that meet many hanging requests and do not count them.
func hasty(c *fetch.Config) {
	c.HeaderTimeout, c.StallTimeout = 100*time.Millisecond, 100*time.Millisecond
}

// TestEveryFaultEverywhere makes every fault at every request in turn: each read
// gives the right bytes or an *Error, except for the faults that only a digest
// can tell.
func TestEveryFaultEverywhere(t *testing.T) {
	data := fetchtest.Random(60_000)
	// A single one of these ends a read: they do not look like going away.
	final := []registry.Fault{registry.WholeBody200, registry.NotFound, registry.RedirectExpired}
	for name, opts := range map[string][]registry.Option{
		"plain":     nil,
		"in clouds": {registry.WithToken("user", "password", 3), registry.WithRedirect(2)},
	} {
		for _, fault := range registry.Faults() {
			t.Run(name+"/"+string(fault), func(t *testing.T) {
				t.Parallel()
				for i := 0; ; i++ {
					reg := registry.New(t, opts...)
					reg.FailAt(i, fault)
					b := open(t, reg, data, hasty)
					err := read(t, b, data)
					if cerr := b.Close(); cerr != nil {
						t.Error(cerr)
					}
					switch {
					case errors.Is(err, errWrongBytes):
						if !fault.Lies() {
							t.Errorf("request %d: wrong bytes", i)
						}
					case err != nil && !slices.Contains(final, fault) && fault != registry.Unauthorized:
						t.Errorf("request %d: one failure was not survived: %v", i, err)
					}
					if err == nil && reg.Count() <= i {
						return // the fault came after the last request
					}
				}
			})
		}
	}
}

// TestFaultForever has a registry that never recovers: the read ends all the same.
func TestFaultForever(t *testing.T) {
	data := fetchtest.Random(60_000)
	for _, fault := range registry.Faults() {
		t.Run(string(fault), func(t *testing.T) {
			t.Parallel()
			reg := registry.New(t)
			reg.FailEvery(1, fault)
			b := open(t, reg, data, hasty)
			err := read(t, b, data)
			switch {
			case fault == registry.Slow:
				if err != nil {
					t.Errorf("slow is not wrong: %v", err)
				}
			case fault.Lies():
				if !errors.Is(err, errWrongBytes) {
					t.Errorf("lie: %v", err)
				}
			// Half of the rest, five times, does not make the whole.
			case err == nil, errors.Is(err, errWrongBytes):
				t.Errorf("read = %v, want an *Error", err)
			}
			if want := fault == registry.WholeBody200; errors.Is(err, fetch.ErrNoRanges) != want {
				t.Errorf("is ErrNoRanges: %v, of %v", !want, err)
			}
			if reg.Count() > 3*5 {
				t.Errorf("%d requests for 3 reads", reg.Count())
			}
		})
	}
}

// TestResume cuts a stream off and looks at what is asked for next.
func TestResume(t *testing.T) {
	data := fetchtest.Random(60_000)
	reg := registry.New(t)
	reg.FailAt(0, registry.CutOff)
	reg.FailAt(1, registry.Stall)
	reg.FailAt(2, registry.ShortBody)
	reg.FailAt(3, registry.TooManyRequests)
	b := open(t, reg, data)
	p := make([]byte, 800)
	if err := fetch.ReadAt(t.Context(), b, p, 100); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, data[100:900]) {
		t.Error("wrong bytes")
	}
	var got []string
	for _, q := range reg.Requests() {
		got = append(got, q.Range)
	}
	want := []string{"bytes=100-899", "bytes=500-899", "bytes=700-899", "bytes=800-899", "bytes=800-899"}
	if !slices.Equal(got, want) {
		t.Errorf("ranges %q, want %q", got, want)
	}
}
