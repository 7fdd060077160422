package startup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/snapshotter/cache/cachetest"
	"github.com/apparate/apparate/snapshotter/fetch"
	"github.com/apparate/apparate/snapshotter/fetch/fetchtest"
	"github.com/apparate/apparate/snapshotter/layer"
	"github.com/apparate/apparate/snapshotter/prefetch"
	"github.com/apparate/apparate/snapshotter/toc"
)

// chunkSize is that of all chunks of a test.
const chunkSize = toc.BlockSize

// made are contents by their numbers, and members with them.
var made struct {
	content, members sync.Map
}

// content is the chunk with a number; the same for the same.
func content(n int) []byte {
	if b, ok := made.content.Load(n); ok {
		return b.([]byte)
	}
	b := make([]byte, chunkSize)
	rnd := rand.New(rand.NewPCG(uint64(n), 7))
	for i := range b {
		b[i] = byte(rnd.IntN(16))
	}
	made.content.Store(n, b)
	return b
}

// gzipped is the member of a chunk.
func gzipped(t testing.TB, n int) []byte {
	t.Helper()
	if b, ok := made.members.Load(n); ok {
		return b.([]byte)
	}
	var raw bytes.Buffer
	z := gzip.NewWriter(&raw)
	if _, err := z.Write(content(n)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	made.members.Store(n, raw.Bytes())
	return raw.Bytes()
}

// world is a layer of chunks by their numbers, one member each.
type world struct {
	*layer.Layer
	numbers []int
	blob    *fetchtest.Bytes
	cache   *cachetest.Mem
}

func newWorld(t testing.TB, gate layer.Gate, numbers ...int) *world {
	t.Helper()
	idx := &toc.Index{}
	var raw []byte
	for i, n := range numbers {
		body := content(n)
		off := len(raw)
		raw = append(raw, gzipped(t, n)...)
		idx.Chunks = append(idx.Chunks, toc.Chunk{Addr: int64(i) * chunkSize, Size: chunkSize, Member: i, Digest: sha256.Sum256(body), Begin: true})
		idx.Members = append(idx.Members, toc.Member{Offset: int64(off), Size: int64(len(raw) - off), First: i, Count: 1})
	}
	idx.DataSize = int64(len(numbers)) * chunkSize
	w := &world{numbers: numbers, blob: fetchtest.NewBytes(raw), cache: cachetest.NewMem(idx)}
	w.Layer = layer.New("test", idx, w.blob, w.cache, layer.Options{Coalesce: -1, Gate: gate, Logger: quiet()})
	t.Cleanup(func() { _ = w.Close() }) // all in memory
	return w
}

// mustRead reads chunk i and compares it.
func (w *world) mustRead(t testing.TB, i int) {
	t.Helper()
	p := make([]byte, chunkSize)
	if _, err := w.ReadAt(context.Background(), p, int64(i)*chunkSize); err != nil {
		t.Errorf("chunk %d: %v", i, err)
	} else if !bytes.Equal(p, content(w.numbers[i])) {
		t.Errorf("chunk %d is wrong", i)
	}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// pack makes the table and the pack of chunks, so many a group.
func pack(t testing.TB, group int, numbers ...int) (*profile.Table, []byte) {
	t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	table := &profile.Table{}
	for part := range slices.Chunk(numbers, group) {
		var body []byte
		var g profile.Group
		for _, n := range part {
			b := content(n)
			body = append(body, b...)
			g.Chunks = append(g.Chunks, profile.Chunk{ID: profile.ID(sha256.Sum256(b)), Size: chunkSize})
		}
		frame := enc.EncodeAll(body, nil)
		g.Size = int64(len(frame))
		raw = append(raw, frame...)
		table.Groups = append(table.Groups, g)
	}
	table.Size, table.Pack = int64(len(raw)), digest.FromBytes(raw).String()
	if _, err := table.Encode(); err != nil {
		t.Fatal(err)
	}
	return table, raw
}

// numbers returns [from, to).
func numbers(from, to int) []int {
	var list []int
	for n := from; n < to; n++ {
		list = append(list, n)
	}
	return list
}

// streamOf makes a stream of a table from a blob, which edit may change.
func streamOf(table *profile.Table, blob fetch.Blob, edit func(*streamOptions)) *stream {
	o := streamOptions{
		table: table, own: true, gate: &prefetch.Gate{}, limits: layer.NewLimits(0, 0), log: quiet(),
		open:   func(context.Context) (fetch.Blob, error) { return blob, nil },
		budget: func() int64 { return defaultBudget },
		judge:  func() (int, int) { return 0, 0 },
		event:  func(string) {},
		spawn:  func(f func()) { go f() },
	}
	if edit != nil {
		edit(&o)
	}
	return newStream(o)
}

// wantRequests compares how many requests the layers have made.
func wantRequests(t testing.TB, want int, all ...*world) {
	t.Helper()
	got := 0
	for _, w := range all {
		got += w.blob.Count()
	}
	if got != want {
		t.Errorf("%d requests of the layers, want %d", got, want)
	}
}

func describe(ranges []fetchtest.Range) string { return fmt.Sprint(ranges) }
