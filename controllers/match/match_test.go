package match

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/v1alpha1"
)

var primary = Key{Namespace: "ns", Name: "main"}

func instance(enabled bool) []Instance {
	return []Instance{{Key: primary, Host: "r.example", Enabled: enabled}, {Key: Key{Namespace: "ns", Name: "other"}, Host: "o.example", Enabled: true}}
}

func rule(name, namespace, repository, tag string, change ...func(*Rule)) Rule {
	r := Rule{Key: Key{Namespace: "ns", Name: name}, Registry: primary, Namespace: namespace, Repository: repository, Tag: tag}
	for _, f := range change {
		f(&r)
	}
	return r
}

func suspended(r *Rule) { r.Suspended = true }

func age(hours int) func(*Rule) {
	return func(r *Rule) { r.Created = time.Unix(0, 0).Add(-time.Duration(hours) * time.Hour) }
}

func wants(p ...v1alpha1.Platform) func(*Rule) { return func(r *Rule) { r.Platforms = p } }

func compiled(t testing.TB, enabled bool, rules ...Rule) *Set {
	t.Helper()
	s, bad := Compile(instance(enabled), rules)
	if len(bad) > 0 {
		t.Fatal(bad)
	}
	return s
}

// TestDecide reads as what rules mean.
func TestDecide(t *testing.T) {
	nginx := rule("nginx", "library", "nginx.*", `latest|v\d+`)
	for _, c := range []struct {
		what   string
		set    *Set
		image  string // repository:tag
		facts  *Facts
		reason string
		won    string
		says   string
	}{
		{"all of the tag", compiled(t, true, nginx), "library/nginx:latest", nil, "Matched", "nginx", `rule "nginx" matches library/nginx:latest`},
		{"all of the repository", compiled(t, true, nginx), "library/my-nginx:latest", nil, "NoRuleMatches", "", `whose repository "nginx.*" does not match all of "my-nginx"`},
		{"not a part of the tag", compiled(t, true, nginx), "library/nginx:v1-rc", nil, "NoRuleMatches", "", `whose tag "latest|v\\d+" does not match all of "v1-rc"`},
		{"the namespace is literal", compiled(t, true, nginx), "librar/nginx:latest", nil, "NoRuleMatches", "", `whose namespace is "library"`},
		{"no namespace is library", compiled(t, true, nginx), "nginx:latest", nil, "Matched", "nginx", ""},
		{"nothing means all", compiled(t, true, rule("all", "team", "", "")), "team/a/b/c:x", nil, "Matched", "all", ""},
		{"a namespace of two parts", compiled(t, true, rule("deep", "team/sub", "app", "")), "team/sub/app:x", nil, "Matched", "deep", ""},
		{"a dot is any character", compiled(t, true, rule("dot", "team", "a.c", "")), "team/abc:x", nil, "Matched", "dot", ""},
		{"a slash is one too", compiled(t, true, rule("s", "team", "a.*", "")), "team/a/b:x", nil, "Matched", "s", ""},
		{"another registry", compiled(t, true, rule("o", "team", "", "", func(r *Rule) { r.Registry.Name = "other" })), "team/a:x", nil, "NoRuleMatches", "", `which is for registry "other" and not for "main"`},
		{"no rules", compiled(t, true), "team/a:x", nil, "NoRuleMatches", "", "there are no rules"},
		{"the oldest wins", compiled(t, true, rule("a", "team", "", "", age(1)), rule("b", "team", "app", "", age(2))), "team/app:x", nil, "Matched", "b", `so does "a", which is newer`},
		{"of one age the first name", compiled(t, true, rule("b", "team", "", ""), rule("a", "team", "", ""), rule("c", "team", "", "")), "team/app:x", nil, "Matched", "a", `so do "b", "c", which are newer`},
		{"also over namespaces", compiled(t, true, rule("a", "team", "", "", age(1)), rule("b", "team/sub", "", "", age(2))), "team/sub/x:y", nil, "Matched", "b", ""},
		{"suspended", compiled(t, true, rule("a", "team", "", "", suspended)), "team/app:x", nil, "RuleSuspended", "a", "set spec.suspend to false"},
		{"suspended, and another is not", compiled(t, true, rule("a", "team", "", "", suspended), rule("b", "team", "", "")), "team/app:x", nil, "Matched", "b", ""},
		{"switched off", compiled(t, false, nginx), "nginx:latest", nil, "AccelerationDisabled", "nginx", "set its spec.accelerationEnabled to true"},
		{"accelerated by name", compiled(t, true, rule("all", "team", "", "")), "team/app:v1-apparate", nil, "IsAcceleratedImage", "", "itself an accelerated image"},
		{"accelerated by annotation", compiled(t, true, rule("all", "team", "", "")), "team/app:fast", &Facts{Accelerated: true}, "IsAcceleratedImage", "all", ""},
		{"a signature by name", compiled(t, true, rule("all", "team", "", "")), "team/app:sha256-" + strings.Repeat("a", 64) + ".sig", nil, "NotAnImage", "", "signatures"},
		{"referrers by name", compiled(t, true, rule("all", "team", "", "")), "team/app:sha256-" + strings.Repeat("a", 64), nil, "NotAnImage", "", ""},
		{"almost a signature", compiled(t, true, rule("all", "team", "", "")), "team/app:sha256-" + strings.Repeat("a", 63), nil, "Matched", "all", ""},
		{"a chart", compiled(t, true, rule("all", "team", "", "")), "team/app:1", &Facts{NotImage: "its config has the type helm"}, "NotAnImage", "all", "its config has the type helm"},
		{"no such platform", compiled(t, true, rule("amd", "team", "", "", wants("linux/amd64"))), "team/app:1", &Facts{Platforms: []string{"linux/arm64/v8", "windows/amd64"}}, "PlatformNotWanted", "amd", `is for linux/arm64/v8, windows/amd64, and rule "amd" wants linux/amd64 only`},
		{"a variant of the platform", compiled(t, true, rule("arm", "team", "", "", wants("linux/arm64"))), "team/app:1", &Facts{Platforms: []string{"linux/arm64/v8"}}, "Matched", "arm", ""},
		{"another architecture with the same beginning", compiled(t, true, rule("arm", "team", "", "", wants("linux/arm"))), "team/app:1", &Facts{Platforms: []string{"linux/arm64"}}, "PlatformNotWanted", "arm", ""},
		{"platforms are not known", compiled(t, true, rule("arm", "team", "", "", wants("linux/arm"))), "team/app:1", &Facts{}, "Matched", "arm", ""},
		{"done already", compiled(t, true, rule("all", "team", "", "")), "team/app:1", &Facts{Digest: "d", AcceleratedFrom: "d"}, "AlreadyAccelerated", "all", "was made from this very image"},
		{"done from another image", compiled(t, true, rule("all", "team", "", "")), "team/app:1", &Facts{Digest: "d", AcceleratedFrom: "e"}, "Matched", "all", ""},
		{"a tag of 120 characters", compiled(t, true, rule("all", "team", "", "")), "team/app:" + strings.Repeat("x", 120), nil, "TagTooLong", "all", "120 characters"},
	} {
		repository, tag, _ := strings.Cut(c.image, ":")
		img := Image{Registry: primary, Repository: repository, Tag: tag, Facts: c.facts}
		d := c.set.Decide(img)
		won := ""
		if d.Rule != nil {
			won = d.Rule.Key.Name
		}
		says := c.set.Explain(img, d)
		if d.Reason != c.reason || won != c.won || d.Convert != (c.reason == "Matched") || !strings.Contains(says, c.says) {
			t.Errorf("%s: %s is %s by %q: %s", c.what, c.image, d.Reason, won, says)
		}
	}
}

// TestManyRules proves that more rules of a namespace than fit into a word are
// told apart.
func TestManyRules(t *testing.T) {
	var rules []Rule
	for i := range 300 {
		rules = append(rules, rule(fmt.Sprintf("r%03d", i), "team", fmt.Sprintf("app-%d", i), ""))
	}
	s := compiled(t, true, rules...)
	for _, i := range []int{0, 63, 64, 255, 256, 299} {
		d := s.Decide(Image{Registry: primary, Repository: fmt.Sprintf("team/app-%d", i), Tag: "x"})
		if d.Rule == nil || d.Rule.Key.Name != fmt.Sprintf("r%03d", i) {
			t.Errorf("app-%d: %+v", i, d)
		}
	}
}

// TestBad proves that a bad rule does not take the others with it.
func TestBad(t *testing.T) {
	s, bad := Compile(instance(true), []Rule{rule("bad", "team", "[", ""), rule("good", "team", "", ""), rule("none", "", "", "")})
	if len(bad) != 2 || !strings.Contains(bad[Key{Namespace: "ns", Name: "bad"}].Error(), "spec.trigger.repository: ") {
		t.Errorf("bad are %v", bad)
	}
	if d := s.Decide(Image{Registry: primary, Repository: "team/app", Tag: "x"}); !d.Convert {
		t.Errorf("%+v", d)
	}
}

func TestInterest(t *testing.T) {
	s := compiled(t, true, rule("a", "team", "app|web", "v1"), rule("b", "team", "tool", ""), rule("c", "x", "gone", "", suspended), rule("d", "y", "app[0-9]", ""))
	named, wanted := s.Repositories(primary)
	if !wanted || fmt.Sprint(named) != "[team/tool]" {
		t.Errorf("%v, %v", named, wanted)
	}
	for repo, want := range map[string]bool{"team/app": true, "team/tool": true, "team/other": false, "x/gone": false, "y/app7": true, "app": false} {
		if got := s.Wants(primary, repo); got != want {
			t.Errorf("%s is wanted: %v", repo, got)
		}
	}
}

// TestSuffix proves that the API refuses the tags that are called accelerated here.
func TestSuffix(t *testing.T) {
	c := v1alpha1.ImageConversion{Spec: v1alpha1.ImageConversionSpec{RegistryRef: v1alpha1.LocalReference{Name: "r"}, Repository: "a", Tag: "v1" + image.Suffix}}
	if len(c.Validate()) != 1 {
		t.Errorf("%q is a tag to convert: %v", c.Spec.Tag, c.Validate())
	}
}

func TestAddress(t *testing.T) {
	for s, want := range map[string]Address{
		"nginx":                              {"docker.io", "library/nginx", "latest"},
		"r.example:5000/a/b:v1":              {"r.example:5000", "a/b", "v1"},
		"https://r.example/a/b":              {"r.example", "a/b", "latest"},
		"r.example/a:v1@sha256:" + zeros(64): {"r.example", "a", "v1"},
	} {
		if got, err := ParseAddress(s); err != nil || got != want {
			t.Errorf("%s is %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "A/B", "r.example/a@sha256:" + zeros(64), "a b", "r.example/a:" + strings.Repeat("x", 129)} {
		if got, err := ParseAddress(s); err == nil {
			t.Errorf("%q is %+v", s, got)
		}
	}
	if !SameHost("index.docker.io", "docker.io") || !SameHost("R.example", "r.example") || SameHost("a", "b") {
		t.Error("hosts are not compared rightly")
	}
}

func zeros(n int) string { return strings.Repeat("0", n) }

// BenchmarkDecide decides on images that were never seen before, against a hundred
// rules: of one namespace, and of ten.
func BenchmarkDecide(b *testing.B) {
	repositories := []string{"", "app-[a-z]+", "svc-.*", "web|api|worker", "(base|runtime)/.*", ".*-service", "nginx.*", "[^/]+/frontend", "ml-(train|serve)-.*", "tool"}
	tags := []string{"", "latest|stable", `v\d+\.\d+\.\d+(-rc\d+)?`, "(main|release-.*)", ".*-(dev|prod)", "sha-[0-9a-f]{7,40}", "[^-]+", "(?i)RELEASE.*", `\d{8}-\d+`, `.*\bnightly\b.*`}
	for _, namespaces := range []int{1, 10} {
		b.Run(fmt.Sprintf("namespaces=%d", namespaces), func(b *testing.B) {
			var rules []Rule
			for i := range 100 {
				rules = append(rules, rule(fmt.Sprintf("r%d", i), fmt.Sprintf("team-%d", i%namespaces), repositories[1+i%9], tags[1+i/10%9]))
			}
			s := compiled(b, true, rules...)
			images := make([]Image, 100_000)
			for i := range images {
				images[i] = Image{Registry: primary, Repository: fmt.Sprintf("team-%d/app-%c%d-service", i%namespaces, 'a'+i%26, i/100), Tag: fmt.Sprintf("v%d.%d.%d", i%7, i%100, i)}
			}
			b.ReportAllocs()
			b.ResetTimer()
			matched := 0
			for i := range b.N {
				if s.Decide(images[i%len(images)]).Convert {
					matched++
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mimages/s")
			if matched == 0 && b.N > 1000 {
				b.Error("nothing matches")
			}
		})
	}
}
