package source

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, host, repo string
		below, begins       bool
	}{
		{"registry.example.com", "registry.example.com", "team/app", true, true},
		{"https://registry.example.com/v1/", "registry.example.com", "team/app", true, true},
		{"http://Registry.Example.Com/v2", "registry.example.com", "team/app", true, true},
		{"registry.example.com", "registry.example.com:443", "team/app", false, false},
		{"registry.example.com:5000", "registry.example.com:5000", "team/app", true, true},
		{"registry.example.com:5000", "registry.example.com:5001", "team/app", false, false},
		{"registry.example.com:5000", "registry.example.com", "team/app", false, false},
		{"*.example.com", "registry.example.com", "a", true, true},
		{"*.example.com", "example.com", "a", false, false},
		{"*.example.com", "a.b.example.com", "a", false, false},
		{"*.*.example.com", "a.b.example.com", "a", true, true},
		{"reg*.example.com", "registry.example.com", "a", true, true},
		{"*", "localhost", "a", true, true},
		{"*:5000", "localhost:5000", "a", true, true},
		{"registry.example.com/team", "registry.example.com", "team/app", true, true},
		{"registry.example.com/team/", "registry.example.com", "team/app", true, true},
		{"registry.example.com/team", "registry.example.com", "team", true, true},
		{"registry.example.com/team", "registry.example.com", "teamwork/app", false, true},
		{"registry.example.com/team/app", "registry.example.com", "team", false, false},
		{"registry.example.com/*", "registry.example.com", "team", false, false}, // wildcards are for hosts
		{"https://index.docker.io/v1/", "registry-1.docker.io", "library/nginx", true, true},
		{"docker.io", "docker.io", "library/nginx", true, true},
		{"docker.io/library", "index.docker.io", "other/app", false, false},
		{"[::1]:5000", "[::1]:5000", "a", true, true},
		{"[::1]", "[::1]:5000", "a", false, false},
		{"10.0.0.1:80/x", "10.0.0.1:80", "x/y", true, true},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Errorf("%q: %v", c.pattern, err)
			continue
		}
		n := imageName{canonicalHost(c.host), c.repo}
		if got := p.below(n); got != c.below {
			t.Errorf("%q below %s = %v", c.pattern, n, got)
		}
		if got := p.begins(n); got != c.begins {
			t.Errorf("%q begins %s = %v", c.pattern, n, got)
		}
	}
	for _, bad := range []string{"", "https://", "/team", "user@host", "a b", "[", "re[g.example.com", `a\b.example.com`} {
		if p, err := parsePattern(bad); err == nil {
			t.Errorf("%q is read as %+v", bad, p)
		}
	}
}

func TestSortEntries(t *testing.T) {
	want := []string{"a.test/team/app", "a.test/team", "*.test/x", "a.test", "b.test:5000", "a.*", "*.*"}
	list := make([]entry, 0, len(want))
	for _, s := range want {
		p, err := parsePattern(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, entry{p, Credential{User: s}})
	}
	slices.Reverse(list)
	sortEntries(list)
	var got []string
	for _, e := range list {
		got = append(got, e.User)
	}
	if !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
}

func FuzzPattern(f *testing.F) {
	for _, s := range []string{"registry.example.com/team", "*.example.com:5000", "https://index.docker.io/v1/", "[::1]:5000/a", "re[a-z].test", "**", ":", "a:b:c/", "docker.io/v2/v1/x", "x:/v2/v2"} {
		f.Add(s, "registry.example.com:5000", "team/app")
	}
	f.Fuzz(func(t *testing.T, s, host, repo string) {
		p, err := parsePattern(s)
		if err != nil {
			return
		}
		if same, err := parsePattern(p.String()); err != nil || !reflect.DeepEqual(same, p) {
			t.Errorf("%q is %+v, and as %q %+v, %v", s, p, p.String(), same, err)
		}
		n := imageName{canonicalHost(host), repo}
		if p.below(n) && !p.begins(n) {
			t.Errorf("%q: below %s, but its name does not begin so", s, n)
		}
		// What is for one host is not for another with the same labels elsewhere.
		if !strings.ContainsAny(s, "*?[") && p.hostMatches(n) && p.hostMatches(imageName{"x" + n.host, repo}) && !strings.HasPrefix(n.host, "[") {
			t.Errorf("%q matches %s and x%s", s, n.host, n.host)
		}
	})
}
