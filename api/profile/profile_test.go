package profile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

func example() *Table {
	return &Table{Pack: "sha256:" + strings.Repeat("a1", 32), Size: 1000, Groups: []Group{
		{Size: 600, Chunks: []Chunk{{ID: 1, Size: 262144, At: 0}, {ID: 1 << 63, Size: 1, At: 4294967295}}},
		{Size: 400, Chunks: []Chunk{{ID: 3, Size: MaxChunk, At: 12}}},
	}}
}

func TestTableRoundTrip(t *testing.T) {
	in := example()
	b, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	out, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("got %+v", out)
	}
	if out.Chunks() != 3 || out.ContentBytes() != 262145+MaxChunk {
		t.Errorf("%d chunks, %d bytes", out.Chunks(), out.ContentBytes())
	}
	for i := range b {
		if _, err := Decode(b[:i]); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a table", i, len(b))
		}
	}
	if _, err := Decode(append(b, 0)); err == nil {
		t.Error("a byte too many was not seen")
	}
}

// The largest table the limits allow can be written, and stays below MaxTable.
func TestLargestTable(t *testing.T) {
	table := &Table{Pack: "sha256:" + strings.Repeat("0", 64), Size: MaxPack}
	for i := range MaxChunks {
		table.Groups = append(table.Groups, Group{Size: MaxPack / MaxChunks, Chunks: []Chunk{{ID: ^uint64(0), Size: MaxChunk, At: uint32(i%2) * (1<<32 - 1)}}})
	}
	b, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := Decode(b); err != nil || !reflect.DeepEqual(out, table) {
		t.Errorf("it came back different: %v", err)
	}
	table.Groups[0].Chunks = append(table.Groups[0].Chunks, Chunk{Size: 1})
	if _, err := table.Encode(); err == nil {
		t.Error("a chunk too many was written")
	}
}

func TestTableRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Table){
		"no digest":        func(t *Table) { t.Pack = "" },
		"other digest":     func(t *Table) { t.Pack = "sha512:" + strings.Repeat("a", 64) },
		"capital digest":   func(t *Table) { t.Pack = "sha256:" + strings.Repeat("A", 64) },
		"no size":          func(t *Table) { t.Size = 0 },
		"another size":     func(t *Table) { t.Size = 1001 },
		"groups too long":  func(t *Table) { t.Groups[1].Size = 401 },
		"negative group":   func(t *Table) { t.Groups[1].Size, t.Groups[0].Size = -1, 1001 },
		"huge pack":        func(t *Table) { t.Size, t.Groups[1].Size = MaxPack+1, MaxPack+1-600 },
		"empty group":      func(t *Table) { t.Groups[0].Chunks = nil },
		"no groups":        func(t *Table) { t.Groups = nil },
		"empty chunk":      func(t *Table) { t.Groups[0].Chunks[0].Size = 0 },
		"huge chunk":       func(t *Table) { t.Groups[0].Chunks[0].Size = MaxChunk + 1 },
		"too much a group": func(t *Table) { t.Groups[1].Chunks = make3() },
	} {
		table := example()
		spoil(table)
		if _, err := table.Encode(); err == nil {
			t.Errorf("%s: it was written", name)
		}
		if table.check() == nil {
			t.Errorf("%s: check let it pass", name)
		}
	}
}

func make3() []Chunk {
	return []Chunk{{Size: MaxChunk}, {Size: MaxChunk}, {Size: 1}}
}

func TestID(t *testing.T) {
	var sum [32]byte
	binary.BigEndian.PutUint64(sum[:], 0x0123456789abcdef)
	if got := ID(sum); got != 0x0123456789abcdef {
		t.Errorf("%x", got)
	}
}

// hostileTables are tables that lie about how much they hold.
func hostileTables() [][]byte {
	head := append([]byte(magic), make([]byte, 32)...)
	number := func(b []byte, v ...uint64) []byte {
		b = bytes.Clone(b)
		for _, n := range v {
			b = binary.AppendUvarint(b, n)
		}
		return b
	}
	return [][]byte{
		nil, head,
		number(head, 10, MaxChunks),
		number(head, 10, 1<<63),
		number(head, 10, 1, 10, MaxChunks),
		number(head, 10, 1, 10, 1<<40, 1, 1, 1, 1, 1, 1, 1, 1, 1),
		number(head, 1<<62, 1, 1<<62, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0),
		// At leads below zero, and beyond 32 bits.
		number(head, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1),
		number(head, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1<<33),
	}
}

func TestHostileTables(t *testing.T) {
	for i, b := range hostileTables() {
		if table, err := Decode(b); err == nil {
			t.Errorf("%d: taken for %+v", i, table)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, b := range hostileTables() {
		f.Add(b)
	}
	good, err := example().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Decode(b)
		if err != nil {
			return
		}
		again, err := table.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if back, err := Decode(again); err != nil || !reflect.DeepEqual(back, table) {
			t.Fatalf("%+v came back as %+v, %v", table, back, err)
		}
	})
}

func exampleSample() Sample {
	s := Sample{Image: "registry.example/web/nginx", Manifest: "sha256:" + strings.Repeat("b", 64), Platform: "linux/amd64", Workload: "shop/Deployment/front",
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), DurationMillis: 20000, ReadyMillis: 812,
		Layers:  []SampleLayer{{Digest: "sha256:" + strings.Repeat("c", 64), TOCDigest: "sha256:" + strings.Repeat("d", 64)}},
		Outcome: Outcome{Requests: 12, FetchedBytes: 3 << 20, WaitedReads: 40, WaitMillis: 700}}
	s.Layers[0].Add([32]byte{1}, 0)
	s.Layers[0].Add([32]byte{2}, 17)
	return s
}

func TestSampleRoundTrip(t *testing.T) {
	in := []Sample{exampleSample()}
	list, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	single, err := json.Marshal(in[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{list, single} {
		out, err := DecodeSamples(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(in, out) {
			t.Errorf("got %+v", out)
		}
	}
	if sum, at := in[0].Layers[0].Chunk(1); sum != [32]byte{2} || at != 17 || in[0].Layers[0].Len() != 2 {
		t.Errorf("chunk 1 is %x at %d", sum, at)
	}
}

func TestSampleRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Sample){
		"no image":       func(s *Sample) { s.Image = "" },
		"no manifest":    func(s *Sample) { s.Manifest = "latest" },
		"a long name":    func(s *Sample) { s.Workload = strings.Repeat("x", 2000) },
		"half a digest":  func(s *Sample) { s.Layers[0].Chunks = s.Layers[0].Chunks[:40] },
		"a time missing": func(s *Sample) { s.Layers[0].At = s.Layers[0].At[:1] },
		"many layers":    func(s *Sample) { s.Layers = make([]SampleLayer, MaxSampleLayers+1) },
		"many chunks": func(s *Sample) {
			s.Layers[0].Chunks, s.Layers[0].At = make([]byte, 32*MaxChunks), make([]uint32, MaxChunks)
			s.Layers = append(s.Layers, exampleSample().Layers[0])
		},
	} {
		s := exampleSample()
		spoil(&s)
		if s.Check() == nil {
			t.Errorf("%s: it passed", name)
		}
	}
	for _, b := range []string{"", "null x", "[", "{", `{"image":1}`, `[{}]`} {
		if got, err := DecodeSamples([]byte(b)); err == nil {
			t.Errorf("%q was taken for %v", b, got)
		}
	}
}

func FuzzDecodeSamples(f *testing.F) {
	good, err := json.Marshal([]Sample{exampleSample()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"image":"a","manifest":"sha256:0","layers":[{"chunks":"AAAA","at":[1]}]}`))
	f.Add([]byte(`[null]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeSamples(b)
		if err != nil {
			return
		}
		for i := range list {
			for j := range list[i].Layers {
				for k := range list[i].Layers[j].Len() {
					list[i].Layers[j].Chunk(k)
				}
			}
		}
	})
}
