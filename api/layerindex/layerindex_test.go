package layerindex

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// row is an entry with its chunks.
type row struct {
	Entry
	chunks []Chunk
}

const testChunk = 1000

// everything are entries with all that an index can say.
func everything() []row {
	xattrs := map[string][]byte{"user.a": []byte("b"), "user.empty": {}}
	rows := []row{
		{Entry: Entry{Type: Dir, Mode: 0o1777}},
		{Entry: Entry{Path: "dev", Type: Dir, Mode: 0o755, Sec: 1}},
		{Entry: Entry{Path: "dev/null", Type: Char, DevMajor: 1, DevMinor: 3, Mode: 0o666, Sec: -7, Nsec: 999999999}},
		{Entry: Entry{Path: "dev/disk", Type: Block, DevMajor: 4095, DevMinor: 1 << 20, UID: 1<<32 - 2, GID: 1000}},
		{Entry: Entry{Path: "dev/pipe", Type: Fifo, Xattrs: xattrs}},
		{Entry: Entry{Path: "äöü 名前", Type: Symlink, Link: "../<elsewhere>/", Sec: 1 << 40}},
		{Entry: Entry{Path: "empty", Type: Reg, Xattrs: xattrs}},
		{Entry: Entry{Path: strings.Repeat("deep/", 819), Type: Reg}},
		{Entry: Entry{Path: "twice", Type: Reg}}, {Entry: Entry{Path: "twice", Type: Hardlink, Link: "empty"}},
		{Entry: Entry{Path: "a", Type: Reg, Size: 3}, chunks: []Chunk{{Offset: 5, Inner: 7, Size: 3, Digest: [32]byte{1}}}},
		{Entry: Entry{Path: "a.b", Type: Reg, Size: 2500}, chunks: []Chunk{
			{Offset: 5, Inner: 1024, Size: 1000, Digest: [32]byte{2}}, {Offset: 5, Inner: 2024, Size: 1000}, {Offset: 999, Size: 500}}},
		{Entry: Entry{Path: "a/b", Type: Reg, Size: 4000}, chunks: []Chunk{{Offset: 999, Inner: 1 << 30, Size: 1500}, {Offset: 1 << 50, Inner: 1, Size: 2500}}},
	}
	rows[7].Path = strings.TrimSuffix(rows[7].Path, "/")
	return rows
}

// many are n entries as a layer has them.
func many(n int) []row {
	r := rand.New(rand.NewPCG(1, 2))
	offset, inner := int64(1000), int64(0)
	var rows []row
	for i := range n {
		dir := fmt.Sprintf("usr/lib/python3.13/site-packages/package%03d", i/40)
		if i%40 == 0 {
			rows = append(rows, row{Entry: Entry{Path: dir, Type: Dir, Mode: 0o755, Sec: 1700000000 + int64(i)}})
		}
		e := Entry{Path: fmt.Sprintf("%s/module_%05d.cpython-313-x86_64-linux-gnu.so", dir, i), Type: Reg, Mode: 0o644, Sec: 1700000000 + int64(i/40), Size: 1 + r.Int64N(3*testChunk)}
		var chunks []Chunk
		for left := e.Size; left > 0; left -= testChunk {
			c := Chunk{Offset: offset, Inner: inner, Size: min(left, testChunk)}
			for k := range 4 {
				binary.LittleEndian.PutUint64(c.Digest[8*k:], r.Uint64())
			}
			chunks = append(chunks, c)
			if inner = (inner+c.Size+511)/512*512 + 512; inner > 20_000 {
				offset, inner = offset+5000+r.Int64N(9000), 0
			}
		}
		rows = append(rows, row{Entry: e, chunks: chunks})
	}
	return rows
}

// write makes an index.
func write(t testing.TB, rows []row, contentEnd int64) []byte {
	t.Helper()
	var blocks []byte
	w, err := NewWriter(testChunk, func(b []byte) error { blocks = append(blocks, b...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		if err := w.Add(&rows[i].Entry, rows[i].chunks); err != nil {
			t.Fatal(err)
		}
	}
	header, err := w.Close(contentEnd)
	if err != nil {
		t.Fatal(err)
	}
	return append(header, blocks...)
}

// readAll reads an index.
func readAll(payload []byte) (Header, []row, error) {
	r, err := NewReader(payload)
	if err != nil {
		return Header{}, nil, err
	}
	var rows []row
	for {
		var e row
		chunks, err := r.Next(&e.Entry)
		if errors.Is(err, io.EOF) {
			return r.Header, rows, nil
		}
		if err != nil {
			return r.Header, nil, err
		}
		e.chunks = slices.Clone(chunks)
		rows = append(rows, e)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, rows := range map[string][]row{"nothing": nil, "everything": everything(), "blocks": many(40000)} {
		t.Run(name, func(t *testing.T) {
			payload := write(t, rows, 1<<51)
			h, got, err := readAll(bytes.Clone(payload))
			if err != nil {
				t.Fatal(err)
			}
			chunks, members := 0, 0
			last := int64(-1)
			for i, want := range rows {
				if chunks += len(want.chunks); i >= len(got) {
					t.Fatalf("only %d entries of %d", len(got), len(rows))
				}
				for _, c := range want.chunks {
					if c.Offset != last {
						members, last = members+1, c.Offset
					}
				}
				if want.chunks == nil {
					got[i].chunks = nil
				}
				if !reflect.DeepEqual(got[i], want) {
					t.Fatalf("entry %d is %+v, want %+v", i, got[i], want)
				}
			}
			// A member that goes on in the next block is counted in both.
			if h.ContentEnd != 1<<51 || h.Entries != len(rows) || h.Chunks != chunks || h.Members < members || h.Members > members+6 {
				t.Errorf("header %+v for %d entries, %d chunks, %d members", h, len(rows), chunks, members)
			}
			if !bytes.Equal(payload, write(t, rows, 1<<51)) {
				t.Error("the same entries make other bytes")
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	long := strings.Repeat("x", 256)
	tooMany := map[string][]byte{}
	for i := range maxXattrs + 1 {
		tooMany[fmt.Sprint("user.", i)] = nil
	}
	for name, c := range map[string]struct {
		row
		kind error
	}{
		"absolute":           {row{Entry: Entry{Path: "/a", Type: Dir}}, ErrUnsupported},
		"slash at the end":   {row{Entry: Entry{Path: "a/", Type: Dir}}, ErrUnsupported},
		"dot":                {row{Entry: Entry{Path: "a/./b", Type: Dir}}, ErrUnsupported},
		"out of the root":    {row{Entry: Entry{Path: "../b", Type: Dir}}, ErrUnsupported},
		"NUL":                {row{Entry: Entry{Path: "a\x00", Type: Dir}}, ErrUnsupported},
		"not UTF-8":          {row{Entry: Entry{Path: "a\xff", Type: Dir}}, ErrUnsupported},
		"replacement":        {row{Entry: Entry{Path: "a\ufffd", Type: Dir}}, ErrUnsupported},
		"long element":       {row{Entry: Entry{Path: long, Type: Dir}}, ErrUnsupported},
		"long path":          {row{Entry: Entry{Path: strings.Repeat("x/", 2048) + "y", Type: Dir}}, ErrUnsupported},
		"no type":            {row{Entry: Entry{Path: "a"}}, ErrUnsupported},
		"root is a file":     {row{Entry: Entry{Type: Reg}}, ErrUnsupported},
		"no target":          {row{Entry: Entry{Path: "a", Type: Symlink}}, ErrUnsupported},
		"long target":        {row{Entry: Entry{Path: "a", Type: Symlink, Link: strings.Repeat("x", 4096)}}, ErrUnsupported},
		"target out":         {row{Entry: Entry{Path: "a", Type: Hardlink, Link: "../a"}}, ErrUnsupported},
		"nanoseconds":        {row{Entry: Entry{Path: "a", Type: Dir, Nsec: 1e9}}, ErrUnsupported},
		"year":               {row{Entry: Entry{Path: "a", Type: Dir, Sec: 1 << 60}}, ErrUnsupported},
		"size of a pipe":     {row{Entry: Entry{Path: "a", Type: Fifo, Size: 1}}, ErrUnsupported},
		"negative size":      {row{Entry: Entry{Path: "a", Type: Reg, Size: -1}}, ErrUnsupported},
		"no chunks":          {row{Entry: Entry{Path: "a", Type: Reg, Size: 1}}, ErrUnsupported},
		"chunk too long":     {row{Entry{Path: "a", Type: Reg, Size: 1}, []Chunk{{Size: 2}}}, ErrUnsupported},
		"chunk of nothing":   {row{Entry{Path: "a", Type: Reg}, []Chunk{{}}}, ErrUnsupported},
		"chunks backwards":   {row{Entry{Path: "a", Type: Reg, Size: 2}, []Chunk{{Offset: 1, Size: 1}, {Size: 1}}}, ErrUnsupported},
		"xattr without name": {row{Entry: Entry{Path: "a", Type: Dir, Xattrs: map[string][]byte{"": nil}}}, ErrUnsupported},
		"long xattr":         {row{Entry: Entry{Path: "a", Type: Dir, Xattrs: map[string][]byte{"user.a": make([]byte, 1<<16)}}}, ErrLimit},
		"long xattr name":    {row{Entry: Entry{Path: "a", Type: Dir, Xattrs: map[string][]byte{long: nil}}}, ErrLimit},
		"many xattrs":        {row{Entry: Entry{Path: "a", Type: Dir, Xattrs: tooMany}}, ErrLimit},
		"many chunks":        {row{Entry{Path: "a", Type: Reg, Size: MaxEntries + 1}, slices.Repeat([]Chunk{{Size: 1}}, MaxEntries+1)}, ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := NewWriter(testChunk, func([]byte) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Add(&c.Entry, c.chunks); !errors.Is(err, c.kind) {
				t.Errorf("Add: %v, want %v", err, c.kind)
			}
			// It cannot go on as if nothing had been.
			if _, err := w.Close(0); !errors.Is(err, c.kind) {
				t.Errorf("Close: %v, want %v", err, c.kind)
			}
		})
	}
}

// An error of the function that takes the blocks comes back.
func TestWriterPassesErrors(t *testing.T) {
	full := errors.New("full")
	w, err := NewWriter(testChunk, func([]byte) error { return full })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&Entry{Path: "a", Type: Dir}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(0); !errors.Is(err, full) {
		t.Error(err)
	}
}

// Every prefix and every changed byte of an index is refused, or read without harm.
func TestDamaged(t *testing.T) {
	payload := write(t, everything(), 1<<51)
	for n := range payload {
		if _, rows, err := readAll(bytes.Clone(payload[:n])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %d entries, %v", n, len(rows), err)
		}
		flipped := bytes.Clone(payload)
		flipped[n] ^= 0x41
		if _, _, err := readAll(flipped); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrLimit) {
			t.Fatalf("byte %d: %v", n, err)
		}
	}
	if _, _, err := readAll(append(bytes.Clone(payload), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("something follows: %v", err)
	}
}

func TestMembers(t *testing.T) {
	for _, n := range []int{0, 1, MemberSize - 1, MemberSize, MemberSize + 1, 5 * MemberSize} {
		payload := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
		members := AppendMembers([]byte("before"), payload)[len("before"):]
		if int64(len(members)) != MembersSize(int64(n)) {
			t.Errorf("%d bytes take %d, announced %d", n, len(members), MembersSize(int64(n)))
		}
		if n > 0 {
			r, err := gzip.NewReader(bytes.NewReader(members))
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := io.ReadAll(r); err != nil || len(plain) != 0 {
				t.Errorf("%d bytes unpack to %d, %v", n, len(plain), err)
			}
		}
		for _, cut := range []int{1, tailSize, len(members) / 2, len(members) - 1} {
			if cut > 0 && cut < len(members) && len(members)-cut != int(MembersSize(int64(n-n%MemberSize))) {
				if _, err := Payload(bytes.Clone(members[:len(members)-cut])); !errors.Is(err, ErrCorrupt) {
					t.Errorf("%d bytes short of %d: %v", cut, len(members), err)
				}
			}
		}
		if got, err := Payload(members); err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%d bytes come back as %d, %v", n, len(got), err)
		}
	}
}

// A layer of zstd frames has its index in a skippable frame, which decoders pass over,
// and the index says so.
func TestZstd(t *testing.T) {
	rows := many(20)
	var blocks []byte
	w, err := NewWriter(testChunk, func(b []byte) error { blocks = append(blocks, b...); return nil })
	if err != nil {
		t.Fatal(err)
	}
	w.Zstd = true
	for i := range rows {
		if err := w.Add(&rows[i].Entry, rows[i].chunks); err != nil {
			t.Fatal(err)
		}
	}
	payload, err := w.Close(1 << 40)
	if err != nil {
		t.Fatal(err)
	}
	payload = append(payload, blocks...)
	frame := append(FrameHeader(int64(len(payload))), payload...)
	zr, err := zstd.NewReader(bytes.NewReader(frame))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	if plain, err := io.ReadAll(zr); err != nil || len(plain) != 0 {
		t.Errorf("it unpacks to %d bytes, %v", len(plain), err)
	}
	for _, bad := range [][]byte{frame[:len(frame)-1], append(bytes.Clone(frame), 0), frame[:7], FrameHeader(1)} {
		if _, err := Payload(bytes.Clone(bad)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes of %d: %v", len(bad), len(frame), err)
		}
	}
	got, err := Payload(frame)
	if err != nil || !bytes.Equal(got, payload) {
		t.Fatalf("%d bytes come back as %d, %v", len(payload), len(got), err)
	}
	h, back, err := readAll(got)
	if err != nil || !h.Zstd || len(back) != len(rows) {
		t.Errorf("%+v with %d rows, %v", h, len(back), err)
	}
	if h, _, err := readAll(write(t, rows, 1<<40)); err != nil || h.Zstd {
		t.Errorf("of gzip members: %+v, %v", h, err)
	}
}

// FuzzRead feeds arbitrary indexes. What is taken follows the rules, and can be written
// again to say the same.
func FuzzRead(f *testing.F) {
	f.Add(write(f, everything(), 1<<51))
	f.Add(write(f, nil, 0))
	f.Add(write(f, many(50), 1<<40))
	f.Fuzz(func(t *testing.T, payload []byte) {
		h, rows, err := readAll(bytes.Clone(payload))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrLimit) {
				t.Fatalf("an error without a kind: %v", err)
			}
			return
		}
		w, err := NewWriter(testChunk, func([]byte) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			// The order of chunks is the reader's caller's to check.
			if err := w.Add(&rows[i].Entry, rows[i].chunks); err != nil && !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrLimit) {
				t.Fatal(err)
			} else if err != nil {
				return
			}
		}
		if h.Entries != len(rows) {
			t.Errorf("%d entries, the header says %d", len(rows), h.Entries)
		}
	})
}

// FuzzColumns feeds arbitrary columns: what is behind the compression.
func FuzzColumns(f *testing.F) {
	raw, digests := columnsOf(f, everything())
	f.Add(raw, digests, uint16(13), uint16(6), uint16(300))
	raw, digests = columnsOf(f, many(50))
	f.Add(raw, digests, uint16(52), uint16(50), uint16(4000))
	f.Fuzz(func(t *testing.T, raw, digests []byte, entries, members, text uint16) {
		r := &Reader{chunkSize: testChunk}
		if r.b.open(raw, digests[:len(digests)/digestSize*digestSize], int(entries), int(members), int(text)) != nil {
			return
		}
		for r.b.entries > 0 {
			var e Entry
			if _, err := r.Next(&e); err != nil {
				return
			}
			if what := checkEntry(&e); what != "" && !strings.Contains(what, "time") {
				t.Fatalf("%+v: %s", e, what)
			}
		}
	})
}

// columnsOf returns the columns and the digests of the first block with rows.
func columnsOf(t testing.TB, rows []row) (raw, digests []byte) {
	t.Helper()
	payload := write(t, rows, 1<<51)
	r, err := NewReader(payload)
	if err != nil {
		t.Fatal(err)
	}
	var n [6]int64
	rest, err := numbers(r.rest, n[:])
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = r.zr.DecodeAll(rest[:n[5]], nil); err != nil {
		t.Fatal(err)
	}
	return raw, rest[n[5]:]
}

func BenchmarkRead(b *testing.B) {
	payload := write(b, many(50000), 1<<51)
	b.Run("verify+read", func(b *testing.B) {
		b.ReportAllocs()
		b.ReportMetric(float64(len(payload)), "payload-bytes")
		for range b.N {
			sum := sha256.Sum256(payload)
			r, err := NewReader(payload)
			if err != nil || sum[0] == 0 && sum[1] == 0 && sum[2] == 0 {
				b.Fatal(err)
			}
			var e Entry
			for err == nil {
				_, err = r.Next(&e)
			}
			if !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
	})
}
