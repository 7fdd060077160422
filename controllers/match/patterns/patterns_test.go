package patterns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// typical patterns, as rules have them.
var typical = []string{
	``, `nginx`, `app|web`, `team-[a-z]+/.*`, `v\d+\.\d+\.\d+(-rc\d+)?`, `(main|release-.*)`, `.*-(dev|prod)`,
	`sha-[0-9a-f]{7,40}`, `latest|stable`, `[^-]+`, `(?i)RELEASE.*`, `^v1\..*$`, `\d{8}-\d+`, `.*\bnightly\b.*`,
}

// odd patterns, for what the syntax can do.
var odd = []string{
	`a^b`, `a$b`, `(?m)^a$`, `(?m)a$\nb`, `\Aab\z`, `\ba`, `a\b`, `a\Bb`, `\B`, `(?s)a.b`, `a.b`, `(a|)*b`, `(|a)+`, `a**`, `(?:a?){5}a{3}`,
	`a*?b`, `(?i)k`, `(?i)ſ`, `[[:alpha:]]+`, `\pL+`, `[^a]`, `\x{e9}`, `é+`, `x{0}`, `()`, `(?U)a+b`, `\Qa.b\E`, `$`, `^`, `\w+\W\w+`, `.`, `\C`,
}

func whole(p string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + p + `)\z`) }

func good(all []string) (kept []string) {
	for _, p := range all {
		if Check(p) == nil {
			kept = append(kept, p)
		}
	}
	return kept
}

func compare(t *testing.T, all []string, texts ...string) {
	t.Helper()
	s, err := Compile(all)
	if err != nil {
		t.Fatal(err)
	}
	var dst []uint64
	for range 2 { // the second time out of the cache
		for _, text := range texts {
			dst = s.Match(text, dst)
			for i, p := range all {
				want := p == "" || whole(p).MatchString(text)
				if got := dst[i/64]>>(i%64)&1 == 1; got != want || s.MatchOne(i, text) != want {
					t.Errorf("%q matches %q: %v, one by one %v, want %v", p, text, got, s.MatchOne(i, text), want)
				}
			}
		}
	}
}

func TestMatch(t *testing.T) {
	texts := []string{
		"", "a", "b", "ab", "a\nb", "a.b", "axb", "aaa", "aaab", "nginx", "nginx2", "v1.2.3", "v1.2.3-rc1", "v1.2", "main", "release-1", "x-dev", "dev",
		"sha-0123456", "latest", "Release", "20240101-1", "a nightly b", "nightlyb", "k", "K", "K", "s", "ſ", "é", "éé", "team-a/app", "a\xffb", "foo bar", "\n",
	}
	compare(t, append(good(odd), typical...), texts...)
	// More than one word of bits.
	var many []string
	for i := range 150 {
		many = append(many, fmt.Sprintf("p%d|x.*%d", i, i%7))
	}
	compare(t, many, "p1", "p149", "x3", "xyz5", "p150", "")
}

// TestErrors proves that a mistake is found where it is.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		pattern string
		offset  int
		reason  string
	}{
		{`ab(c`, 2, "missing closing )"},
		{`(a)(b(c)`, 3, "missing closing )"},
		{`a\(b)(`, 4, "unexpected )"},
		{`[(]x)`, 4, "unexpected )"},
		{`a[b-`, 1, "missing closing ]"},
		{`x[[:foo:]]`, 2, "invalid character class range"},
		{`ab*+*`, 2, "invalid nested repetition operator"},
		{`*a`, 0, "missing argument to repetition operator"},
		{`xa{2,1}`, 2, "invalid repeat count"},
		{`abc\8`, 3, "invalid escape sequence"},
		{`a(?P<n`, 1, "invalid named capture"},
		{`a(?z)`, 1, "invalid or unsupported Perl syntax"},
		{`x\pX`, 1, "invalid character class range"},
		{`ab\`, 2, "trailing backslash at end of expression"},
		{"ab\xff", 2, "invalid UTF-8"},
		{`[b-a]`, 1, "invalid character class range"},
		{strings.Repeat("a", MaxLength+1), MaxLength, "longer than"},
		{`((a{100}){100}){10}`, 3, "invalid repeat count"},
	} {
		err := Check(c.pattern)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q is good", c.pattern)
			continue
		}
		if e.Offset != c.offset || !slices.ContainsFunc(strings.Split(c.reason, "|"), func(r string) bool { return strings.HasPrefix(e.Reason, r) }) {
			t.Errorf("%q: %q at %d, want %q at %d", c.pattern, e.Reason, e.Offset, c.reason, c.offset)
		}
		if _, err := Compile([]string{"a", c.pattern}); !errors.As(err, &e) || e.Index != 1 {
			t.Errorf("Compile of %q: %v", c.pattern, err)
		}
	}
	if err := Check(`ä[b`); err.Error() != `"ä[b" is no regular expression: missing closing ], at position 2: "[b"` {
		t.Error(err)
	}
}

// TestBounded proves that patterns with very many states stay right, and small.
func TestBounded(t *testing.T) {
	all := []string{`.*a.{14}`, `.*b.{13}c`, `x+`}
	s, err := Compile(all)
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 3000 {
		text := make([]byte, 40)
		for i := range text {
			text[i] = "abc"[rnd.IntN(3)]
		}
		got := s.Match(string(text), nil)
		for i, p := range all {
			if want := whole(p).Match(text); got[0]>>i&1 == 1 != want {
				t.Fatalf("%q matches %q: %v", p, text, !want)
			}
		}
		if n := len(s.cache.states); n > maxStates {
			t.Fatalf("%d states", n)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d KiB are kept, switched off: %v", (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>10, s.cache.off.Load())
}

func TestParallel(t *testing.T) {
	s, err := Compile(good(append(odd, typical...)))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				text := fmt.Sprintf("v%d.%d.%d", g, i%9, i)
				if !s.MatchOne(0, text) && s.Match(text, nil) == nil {
					t.Error("unreachable")
				}
				if got := s.Match("nginx", nil); got == nil {
					t.Error(got)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzMatch(f *testing.F) {
	for _, p := range append(odd, typical...) {
		f.Add(p, `v\d+`, "v1.2.3")
		f.Add(`a|`+p, p, "a\nb")
	}
	f.Fuzz(func(t *testing.T, p, q, text string) {
		all := good([]string{p, q})
		if len(p)+len(q)+len(text) > 300 || len(all) == 0 {
			return
		}
		for _, p := range all {
			if _, err := regexp.Compile(`\A(?:` + p + `)\z`); err != nil {
				return // together with the group it is too deep or too large
			}
		}
		compare(t, all, text)
	})
}

func benchmark(b *testing.B, fresh bool, match func(s *Set, text string, dst []uint64) []uint64) {
	var all []string
	for i := range 100 {
		p := typical[1+i%(len(typical)-1)]
		all = append(all, fmt.Sprintf("(%s)|only-%d", p, i))
	}
	s, err := Compile(all)
	if err != nil {
		b.Fatal(err)
	}
	texts := make([]string, 50_000)
	for i := range texts {
		texts[i] = fmt.Sprintf([]string{"v%d.%d.7", "release-%d-%d", "sha-%07x%05x", "service-%d/part-%d-prod"}[i%4], i, i*7)
	}
	if !fresh {
		texts = texts[:100]
	}
	dst := make([]uint64, s.Words())
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		dst = match(s, texts[i%len(texts)], dst)
	}
}

func BenchmarkMatch(b *testing.B) {
	b.Run("repeated", func(b *testing.B) { benchmark(b, false, (*Set).Match) })
	b.Run("new", func(b *testing.B) { benchmark(b, true, (*Set).Match) })
	b.Run("one-by-one", func(b *testing.B) {
		benchmark(b, true, func(s *Set, text string, dst []uint64) []uint64 {
			for i := range s.all {
				if s.MatchOne(i, text) {
					dst[i/64] |= 1 << (i % 64)
				}
			}
			return dst
		})
	})
}
