package inflate

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
)

// contents are texts of different statistics, each with a name.
func contents(t testing.TB) map[string][]byte {
	t.Helper()
	var source []byte
	for _, file := range []string{"inflate.go", "tables.go", "block.go", "inflate_test.go"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	machine, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	noise, skewed, runs := make([]byte, 300<<10), make([]byte, 300<<10), make([]byte, 0, 300<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
		skewed[i] = byte(r.ExpFloat64() * 3)
	}
	// Matches of every length at distances that overlap and that do not.
	for len(runs) < 280<<10 {
		from := max(0, len(runs)-1-r.IntN(1<<r.IntN(16)))
		for range r.IntN(300) {
			if len(runs) == 0 {
				break
			}
			runs = append(runs, runs[from])
			from++
		}
		runs = append(runs, byte(r.Uint32()))
	}
	return map[string][]byte{
		"empty": {}, "byte": {7}, "zeros": make([]byte, 100_000), "noise": noise, "skewed": skewed, "runs": runs,
		"source": source, "machine": machine[:min(len(machine), 2<<20)], "short": []byte("hello, hello, hello"),
	}
}

func compressed(t testing.TB, content []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "a name", "a comment", []byte("APextra")
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestGunzip decompresses what every level of the library makes, whole and in part, and
// with others behind it.
func TestGunzip(t *testing.T) {
	var d Decoder // the same for all: nothing of one may be left for the next
	for name, content := range contents(t) {
		for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
			src := append(compressed(t, content, level), "behind it"...)
			for _, n := range []int{len(content), len(content) / 2, len(content) - 1, 1, 0} {
				if n < 0 || n > len(content) {
					continue
				}
				dst := make([]byte, n, n+16)
				copy(dst[n:n+16], "not to be hurt..")
				if err := d.Gunzip(dst, src); err != nil {
					t.Fatalf("%s at level %d, %d of %d bytes: %v", name, level, n, len(content), err)
				}
				if !bytes.Equal(dst, content[:n]) {
					t.Fatalf("%s at level %d: %d bytes are not those of the content", name, level, n)
				}
				if string(dst[n:n+16]) != "not to be hurt.." {
					t.Fatalf("%s at level %d: written behind the end", name, level)
				}
			}
			if err := d.Gunzip(make([]byte, len(content)+1), src); err == nil {
				t.Fatalf("%s at level %d gave a byte more than it has", name, level)
			}
		}
	}
}

// TestBlocks decodes blocks that the library's writer does not make: fixed codes, codes
// of 15 bits, stored ones between others, one distance alone.
func TestBlocks(t *testing.T) {
	var all []byte
	var want []byte
	add := func(block string, content string) {
		all = append(all, block...)
		want = append(want, content...)
	}
	add("\x00\x03\x00\xfc\xffabc", "abc")
	add("\x00\x00\x00\xff\xff", "")
	// Fixed: "a", a match of 3 at distance 1, the end (RFC 1951, section 3.2.6).
	add(bitString("0"+"10"+"10010001"+"0000001"+"00000"+"0000000"+"000"), "aaaa")
	d := new(Decoder)
	d.src, d.dst = append(all, 1, 0, 0, 0xff, 0xff), make([]byte, len(want))
	if err := d.blocks(); err != nil || string(d.dst) != string(want) {
		t.Fatalf("%q, want %q, %v", d.dst, want, err)
	}
}

// bitString makes bytes of bits in the order of the stream.
func bitString(bits string) string {
	b := make([]byte, (len(bits)+7)/8)
	for i, c := range bits {
		if c == '1' {
			b[i/8] |= 1 << (i % 8)
		}
	}
	return string(b)
}

// TestLongCodes builds a code of which symbols have 15 bits: Fibonacci numbers of each.
func TestLongCodes(t *testing.T) {
	var content []byte
	for i, a, b := 0, 1, 1; i < 22; i, a, b = i+1, b, a+b {
		content = append(content, bytes.Repeat([]byte{byte(i * 11)}, a)...)
	}
	r := rand.New(rand.NewPCG(3, 4))
	r.Shuffle(len(content), func(i, j int) { content[i], content[j] = content[j], content[i] })
	content = content[:min(len(content), 40_000)]
	for level := gzip.HuffmanOnly; level <= gzip.BestCompression; level++ {
		got := make([]byte, len(content))
		if err := new(Decoder).Gunzip(got, compressed(t, content, level)); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("level %d: %v", level, err)
		}
	}
}

// TestPairs: where literals are short, one look finds two of them; a block of matches is
// not worth it.
func TestPairs(t *testing.T) {
	all := contents(t)
	for name, want := range map[string]bool{"skewed": true, "zeros": false, "noise": false} {
		d := new(Decoder)
		level := gzip.HuffmanOnly
		if name == "zeros" {
			level = gzip.BestCompression
		}
		if err := d.Gunzip(make([]byte, len(all[name])), compressed(t, all[name], level)); err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(d.literals[:1<<literalBits], func(e entry) bool { return e&isLiteral != 0 && e&isPair != 0 })
		if got != want {
			t.Errorf("%s: pairs %v", name, got)
		}
	}
}

// TestDamage cuts and changes members everywhere: an error or other content, and nothing
// else. Damage that the library does not see either is no error.
func TestDamage(t *testing.T) {
	content := []byte(strings.Repeat("a text with some repetition, ", 40) + "and an end")
	var d Decoder
	for _, level := range []int{gzip.HuffmanOnly, 1, 9} {
		src := compressed(t, content, level)
		dst := make([]byte, len(content))
		for n := range len(src) - 12 { // the code of the end and the trailer are not needed for all content
			if err := d.Gunzip(dst, src[:n]); err == nil {
				t.Fatalf("level %d: nothing is wrong with the first %d of %d bytes", level, n, len(src))
			}
		}
		for i := range src {
			for bit := range 8 {
				bad := bytes.Clone(src)
				bad[i] ^= 1 << bit
				agree(t, &d, bad, len(content))
			}
		}
	}
}

// agree compares with the library: what is decoded here the library decodes, to the same.
func agree(t *testing.T, d *Decoder, src []byte, n int) {
	t.Helper()
	got := make([]byte, n)
	if d.Gunzip(got, src) != nil {
		return
	}
	// The library wants more than the bits of the last symbol before it gives that. Of
	// headers it knows only names that are not long, and checks what has no use here.
	at, _ := header(src)
	var want bytes.Buffer
	_, err := io.CopyN(&want, flate.NewReader(bytes.NewReader(append(bytes.Clone(src[at:]), make([]byte, 64)...))), int64(n))
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("decoded %d bytes, %.40q, the library %d, %.40q, %v", n, got, want.Len(), want.Bytes(), err)
	}
}

// FuzzGunzip: any bytes, any length wanted; the same as the library or an error.
func FuzzGunzip(f *testing.F) {
	for _, content := range contents(f) {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 9} {
			f.Add(compressed(f, content[:min(len(content), 3000)], level), uint16(min(len(content), 3000)))
		}
	}
	fixed := binary.LittleEndian.AppendUint32([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), 0x0004_044b)
	f.Add(fixed, uint16(3))
	var d Decoder
	f.Fuzz(func(t *testing.T, src []byte, n uint16) { agree(t, &d, src, int(n)) })
}

// BenchmarkGunzip compares with the library; MB/s are of content.
func BenchmarkGunzip(b *testing.B) {
	all := contents(b)
	for _, name := range []string{"skewed", "source", "machine"} {
		content := all[name][:min(len(all[name]), 256<<10)]
		for level, l := range map[string]int{"huffman": gzip.HuffmanOnly, "best": gzip.BestCompression} {
			src := compressed(b, content, l)
			dst := make([]byte, len(content))
			b.Run(name+"/"+level+"/ours", func(b *testing.B) {
				b.SetBytes(int64(len(content)))
				d := new(Decoder)
				for b.Loop() {
					if err := d.Gunzip(dst, src); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(name+"/"+level+"/library", func(b *testing.B) {
				b.SetBytes(int64(len(content)))
				r := new(gzip.Reader)
				for b.Loop() {
					if err := r.Reset(bytes.NewReader(src)); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(r, dst); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
