package startup

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
)

// The pack comes by one request, each chunk of it goes to every layer that has it, and
// no read of it asks the registry; whether indexes are there before or after.
func TestStream(t *testing.T) {
	for _, early := range []bool{false, true} {
		a, b := newWorld(t, nil, numbers(0, 60)...), newWorld(t, nil, numbers(40, 100)...)
		table, raw := pack(t, 8, append(numbers(10, 90), 500)...)
		blob := fetchtest.NewBytes(raw)
		s := streamOf(table, blob, nil)
		done := make(chan string)
		if early {
			go func() { done <- s.run(t.Context()) }()
			for blob.Delivered() < int64(len(raw)) {
				time.Sleep(time.Millisecond)
			}
		}
		s.attach(a.Layer)
		s.attach(b.Layer)
		s.allAttached()
		if !early {
			go func() { done <- s.run(t.Context()) }()
		}
		if reason := <-done; reason != endedWhole {
			t.Errorf("early %v: ended for %q", early, reason)
		}
		for g := range table.Groups {
			<-s.done[g]
		}
		for i := 10; i < 60; i++ {
			a.mustRead(t, i)
			b.mustRead(t, i-10)
		}
		wantRequests(t, 0, a, b)
		// The last group belongs nowhere, which is known once the indexes are.
		if got := blob.Opens(); len(got) != 1 || early != (got[0].N == int64(len(raw))) {
			t.Errorf("the pack was asked for by %s", describe(got))
		}
		a.mustRead(t, 3)
		wantRequests(t, 1, a, b)
		if blob.Unclosed() != 0 {
			t.Error("a response was not closed")
		}
	}
}

// Of another image's profile only what is of use is fetched, in few requests.
func TestForeign(t *testing.T) {
	w := newWorld(t, nil, numbers(0, 150)...)
	// Groups of 50 chunks: none, all, a few, all.
	table, raw := pack(t, 50, slices.Concat(numbers(1000, 1050), numbers(0, 50), numbers(2000, 2035), numbers(50, 65), numbers(100, 150))...)
	blob := fetchtest.NewBytes(raw)
	s := streamOf(table, blob, func(o *streamOptions) { o.own = false })
	s.attach(w.Layer)
	s.allAttached()
	if reason := s.run(t.Context()); reason != endedWhole {
		t.Errorf("ended for %q", reason)
	}
	for i := range 50 {
		w.mustRead(t, i)
		w.mustRead(t, 100+i)
	}
	wantRequests(t, 0, w)
	// What lies between the two is shorter than a request is worth.
	if got := blob.Opens(); len(got) != 1 || got[0].Off != table.Groups[0].Size {
		t.Errorf("the pack was asked for by %s", describe(got))
	}
	other := newWorld(t, nil, numbers(5000, 5100)...)
	blob.Reset()
	s = streamOf(table, blob, func(o *streamOptions) { o.own = false })
	s.attach(other.Layer)
	s.allAttached()
	if reason := s.run(t.Context()); reason != abandonedForeign || blob.Count() != 0 {
		t.Errorf("nothing matches: ended for %q after %d requests", reason, blob.Count())
	}
}

// What is mostly here is not streamed.
func TestCached(t *testing.T) {
	w := newWorld(t, nil, numbers(0, 100)...)
	for i := range 90 {
		w.mustRead(t, i)
	}
	table, raw := pack(t, 10, numbers(0, 100)...)
	blob := fetchtest.NewBytes(raw)
	s := streamOf(table, blob, nil)
	s.attach(w.Layer)
	s.allAttached()
	if reason := s.run(t.Context()); reason != abandonedCached || blob.Count() != 0 {
		t.Errorf("ended for %q after %d requests", reason, blob.Count())
	}
}

// A pack that is not what its table says is given up, and no wrong byte is kept.
func TestBadPack(t *testing.T) {
	table, raw := pack(t, 4, numbers(0, 400)...)
	for name, spoil := range map[string]func() (*profile.Table, []byte){
		"noise":       func() (*profile.Table, []byte) { return table, bytes.Repeat([]byte{0x55}, len(raw)) },
		"zeros":       func() (*profile.Table, []byte) { return table, make([]byte, len(raw)) },
		"other order": func() (*profile.Table, []byte) { return shifted(table), raw },
		"other image": func() (*profile.Table, []byte) { return pack(t, 4, numbers(5000, 5400)...) },
	} {
		w := newWorld(t, nil, numbers(0, 400)...)
		bad, b := spoil()
		blob := fetchtest.NewBytes(b)
		s := streamOf(bad, blob, nil)
		s.attach(w.Layer)
		if name == "other image" {
			s.mu.Lock()
			s.complete = true // as if the indexes had come too late for the plan
			s.mu.Unlock()
		} else {
			s.allAttached()
		}
		if reason := s.run(t.Context()); reason != abandonedBad {
			t.Errorf("%s: ended for %q", name, reason)
		}
		if blob.Delivered() > int64(len(b)/2) {
			t.Errorf("%s: %d of %d bytes were fetched", name, blob.Delivered(), len(b))
		}
		for i := range 400 {
			w.mustRead(t, i)
		}
	}
}

// shifted has the chunks of each group under the name of the group before.
func shifted(table *profile.Table) *profile.Table {
	out := *table
	out.Groups = slices.Clone(table.Groups)
	for i := range out.Groups {
		out.Groups[i].Chunks = table.Groups[(i+1)%len(table.Groups)].Chunks
	}
	return &out
}

// A program that reads other chunks than the table has ends the stream.
func TestUnread(t *testing.T) {
	w := newWorld(t, nil, numbers(0, 400)...)
	table, raw := pack(t, 4, numbers(0, 400)...)
	blob := fetchtest.NewBytes(raw)
	s := streamOf(table, blob, func(o *streamOptions) { o.judge = func() (int, int) { return minJudged, minJudged/4 - 1 } })
	s.attach(w.Layer)
	s.allAttached()
	if reason := s.run(t.Context()); reason != abandonedUnread || blob.Delivered() > int64(len(raw)/4) {
		t.Errorf("ended for %q after %d bytes", reason, blob.Delivered())
	}
	s.forget()
	w.mustRead(t, 5)
}

// No more is asked for than the budget has.
func TestBudget(t *testing.T) {
	w := newWorld(t, nil, numbers(0, 100)...)
	table, raw := pack(t, 10, numbers(0, 100)...)
	blob := fetchtest.NewBytes(raw)
	limit := int64(len(raw) / 2)
	s := streamOf(table, blob, func(o *streamOptions) { o.budget = func() int64 { return limit } })
	s.attach(w.Layer)
	s.allAttached()
	if reason := s.run(t.Context()); reason != endedBudget {
		t.Errorf("ended for %q", reason)
	}
	if got := blob.Opens(); len(got) != 1 || got[0].N > limit || got[0].N < limit/2 {
		t.Errorf("the pack was asked for by %s, %d are allowed", describe(got), limit)
	}
	w.mustRead(t, 99)
}

// Frames that promise little content in many bytes are refused before they are read.
func TestCheck(t *testing.T) {
	table, _ := pack(t, 4, numbers(0, 8)...)
	if err := check(table); err != nil {
		t.Error(err)
	}
	table.Groups[1].Size = 1 << 30
	if check(table) == nil {
		t.Error("a frame of 1 GiB for 16 KiB was taken")
	}
}

// slow is a blob whose bytes come when the test lets them.
type slow struct {
	*fetchtest.Bytes
	raw  []byte
	step chan int // so many bytes more
}

func (b *slow) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		at := off
		for at < off+n {
			select {
			case k := <-b.step:
				end := min(at+int64(k), off+n)
				if _, err := w.Write(b.raw[at:end]); err != nil {
					return
				}
				at = end
			case <-ctx.Done():
				_ = w.CloseWithError(ctx.Err()) // it returns no other error
				return
			}
		}
		_ = w.Close() // as above
	}()
	return r, nil
}

// bubble is a stream in a bubble of its own time, with a world of 100 chunks.
func bubble(t *testing.T, f func(t *testing.T, w *world, s *stream, b *slow)) {
	sharedDecoders() // not of the bubble
	synctest.Test(t, func(t *testing.T) {
		gate := &prefetch.Gate{}
		w := newWorld(t, gate, numbers(0, 100)...)
		table, raw := pack(t, 1, numbers(0, 100)...)
		b := &slow{Bytes: fetchtest.NewBytes(raw), raw: raw, step: make(chan int)}
		s := streamOf(table, b, func(o *streamOptions) { o.gate = gate })
		s.attach(w.Layer)
		s.allAttached()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan string, 1)
		go func() { done <- s.run(ctx) }()
		synctest.Wait()
		f(t, w, s, b)
		cancel()
		<-done
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
	})
}

// A reader waits for a chunk that comes soon, and makes no request.
func TestReaderWaits(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, s *stream, b *slow) {
		read := make(chan struct{})
		go func() { w.mustRead(t, 1); close(read) }()
		synctest.Wait()
		for range 2 {
			time.Sleep(10 * time.Millisecond)
			b.step <- int(s.table.Groups[0].Size) + 4
		}
		<-read
		wantRequests(t, 0, w)
		if st := w.Stats(); st.WaitedReads != 1 || st.SupplyWait != 20*time.Millisecond || st.DemandRequests != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// When no byte comes, a reader goes on after 300 ms, and the next at once.
func TestStall(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, s *stream, b *slow) {
		began := time.Now()
		w.mustRead(t, 7)
		if d := time.Since(began); d < stall-time.Millisecond || d > stall+stall/10+time.Millisecond {
			t.Errorf("it waited %v", d)
		}
		began = time.Now()
		w.mustRead(t, 8)
		if d := time.Since(began); d != 0 {
			t.Errorf("the next one waited %v", d)
		}
		wantRequests(t, 2, w)
		b.step <- len(b.raw)
		synctest.Wait()
		w.mustRead(t, 50)
		wantRequests(t, 2, w)
	})
}

// A chunk that is far away is not waited for.
func TestOvertake(t *testing.T) {
	bubble(t, func(t *testing.T, w *world, s *stream, b *slow) {
		time.Sleep(time.Millisecond)
		b.step <- 100
		synctest.Wait()
		s.received.Add(1 << 20) // a rate of 1 MiB in 10 s
		time.Sleep(10 * time.Second)
		s.latest.Store(s.now())
		began := time.Now()
		w.mustRead(t, 99)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("it waited %v", d)
		}
		wantRequests(t, 1, w)
	})
}

// Readers go on when the stream breaks.
func TestBroken(t *testing.T) {
	w := newWorld(t, nil, numbers(0, 100)...)
	table, raw := pack(t, 10, numbers(0, 100)...)
	for name, f := range map[string]fetchtest.Fault{"at once": {}, "half way": {After: int64(len(raw) / 2)}} {
		blob := fetchtest.NewBytes(raw)
		blob.Toggle(&f)
		s := streamOf(table, blob, nil)
		s.attach(w.Layer)
		s.allAttached()
		if reason := s.run(t.Context()); reason != abandonedFailed {
			t.Errorf("%s: ended for %q", name, reason)
		}
		s.forget()
	}
	for i := range 100 {
		w.mustRead(t, i)
	}
	wantRequests(t, 50, w) // of the second one the first half came
}

// While readers' requests are under way the stream stands still.
func TestGivesWay(t *testing.T) {
	sharedDecoders()
	synctest.Test(t, func(t *testing.T) {
		gate := &prefetch.Gate{}
		w := newWorld(t, gate, numbers(0, 100)...)
		table, raw := pack(t, 1, numbers(0, 100)...)
		blob := fetchtest.NewBytes(raw)
		gate.Enter()
		s := streamOf(table, blob, func(o *streamOptions) { o.gate = gate })
		s.attach(w.Layer)
		s.allAttached()
		done := make(chan string, 1)
		go func() { done <- s.run(t.Context()) }()
		time.Sleep(100 * time.Millisecond)
		if got := blob.Delivered(); got != 0 {
			t.Errorf("%d bytes came while a reader waited", got)
		}
		gate.Leave()
		began := time.Now()
		if reason := <-done; reason != endedWhole || time.Since(began) > 10*time.Millisecond {
			t.Errorf("ended for %q after %v", reason, time.Since(began))
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Whatever table and pack are: it ends, and a chunk that is kept is right.
func FuzzStream(f *testing.F) {
	table, raw := pack(f, 4, numbers(0, 40)...)
	good, err := table.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, raw, true)
	f.Add(good, raw[:len(raw)/2], true)
	f.Add(good, append(raw[100:], raw[:100]...), false)
	other, err := shifted(table).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(other, raw, true)
	f.Fuzz(func(t *testing.T, encoded, raw []byte, own bool) {
		table, err := profile.Decode(encoded)
		if err != nil || check(table) != nil {
			return
		}
		w := newWorld(t, nil, numbers(0, 40)...)
		s := streamOf(table, fetchtest.NewBytes(raw), func(o *streamOptions) {
			o.own = own
			o.budget = func() int64 { return 1 << 20 }
		})
		s.attach(w.Layer)
		s.allAttached()
		s.run(t.Context())
		s.forget()
		for i := range 40 {
			w.mustRead(t, i)
		}
	})
}

var (
	_ fetch.Blob = (*slow)(nil)
	_ layer.Gate = (*prefetch.Gate)(nil)
)
