package accelerationrule

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/watch"
	oci "github.com/apparate/apparate/converter/registry"
)

// reading is a cache that only reads, out of a fake client.
type reading struct {
	cache.Cache
	client.Client
}

func (r reading) Get(ctx context.Context, k client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	return r.Client.Get(ctx, k, o, opts...)
}

func (r reading) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	return r.Client.List(ctx, l, opts...)
}

// one is a session for everything.
type one struct{ session *oci.Session }

func (o one) Get(context.Context, *v1alpha1.Registry) (*oci.Session, error) { return o.session, nil }

// office is a dispatcher with a registry of which the test sets the tags.
type office struct {
	*Dispatcher
	t    *testing.T
	mu   sync.Mutex
	tags map[string]string // repository:tag to manifest
	asks int
	late int // so many looks see nothing yet
	lost int
}

var registryKey = match.Key{Namespace: "ns", Name: "main"}

const manifest = `{"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:c"},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip"}]%s}`

func newOffice(t *testing.T) *office {
	t.Helper()
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	reg := &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "main"}, Spec: v1alpha1.RegistrySpec{Endpoint: "r.example", AccelerationEnabled: true}}
	rule := &v1alpha1.AccelerationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rule", UID: "uid"}}
	rule.Spec.Trigger = v1alpha1.RuleTrigger{RegistryRef: v1alpha1.LocalReference{Name: "main"}, Namespace: "team"}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(reg, rule)
	for name, f := range conversion.Indexers() {
		b = b.WithIndex(&v1alpha1.ImageConversion{}, name, f)
	}
	c := b.Build()
	o := &office{t: t, tags: map[string]string{}}
	server := httptest.NewServer(o)
	t.Cleanup(server.Close)
	session, err := oci.NewSession(oci.Options{PlainHTTP: true}, strings.TrimPrefix(server.URL, "http://"), oci.SessionLimit{})
	if err != nil {
		t.Fatal(err)
	}
	o.Dispatcher = &Dispatcher{
		Client: c, Book: NewBook(reading{Client: c}), Sessions: one{session}, Inventory: watch.NewInventory(), Now: time.Now,
		Queue: &conversion.Queue{Client: c, MaxScanned: 10, MaxTotal: 10, Backlog: &conversion.Backlog{}},
		Lost:  func(match.Key) { o.lost++ },
	}
	return o
}

func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if r.URL.Path == "/v2/" {
		return
	}
	o.asks++
	raw := o.tags[strings.Replace(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/", ":", 1)]
	if raw == "" || o.asks <= o.late {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = w.Write([]byte(raw)) // the client may be gone
}

func (o *office) push(tag, digest string) watch.Outcome {
	o.t.Helper()
	out, err := o.Report(o.t.Context(), watch.Push{Registry: registryKey, Repository: "team/app", Tag: tag, Digest: digest, Origin: watch.Webhook})
	if err != nil {
		o.t.Fatal(err)
	}
	return out
}

func digestOf(raw string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(raw))) }

// TestReport proves what becomes of pushes, and how often the registry is asked.
func TestReport(t *testing.T) {
	o := newOffice(t)
	plain, moved := fmt.Sprintf(manifest, ""), fmt.Sprintf(manifest, `,"annotations":{"moved":"yes"}`)
	o.tags["team/app:v1"] = plain
	for _, c := range []struct {
		what, tag, digest string
		before            func()
		reason            string
		asks, lost        int
		created           bool
	}{
		{"a push", "v1", digestOf(plain), nil, v1alpha1.ReasonMatched, 1, 0, true},
		{"the same again", "v1", digestOf(plain), nil, v1alpha1.ReasonMatched, 1, 0, true},
		{"the registry is behind", "v1", digestOf(moved), func() { o.tags["team/app:v1"] = moved; o.late = 3 }, v1alpha1.ReasonMatched, 4, 0, true},
		{"the registry stays behind", "v1", digestOf("another"), nil, v1alpha1.ReasonMatched, 6, 1, true},
		{"the same again, from one who does not say what it is", "v1", "", nil, v1alpha1.ReasonMatched, 6, 0, true},
		{"nothing is there", "v2", "", nil, "ImageNotFound", 6, 1, false},
		{"no image", "chart", "", func() { o.tags["team/app:chart"] = strings.Replace(plain, "oci.image.config", "cncf.helm.config", 1) }, v1alpha1.ReasonNotAnImage, 1, 0, false},
		{"accelerated, under another name", "fast", "", func() {
			o.tags["team/app:fast"] = fmt.Sprintf(manifest, `,"annotations":{"cloud.tencent.com/apparate.source.digest":"sha256:x"}`)
		}, v1alpha1.ReasonIsAcceleratedImage, 1, 0, false},
		{"accelerated, by its name", "v1-apparate", "", nil, v1alpha1.ReasonIsAcceleratedImage, 0, 0, false},
		{"not readable", "odd", "", func() { o.tags["team/app:odd"] = "[]" }, v1alpha1.ReasonNotAnImage, 1, 0, false},
	} {
		o.asks, o.late, o.lost = 0, 0, 0
		if c.before != nil {
			c.before()
		}
		out := o.push(c.tag, c.digest)
		if out.Reason != c.reason || o.asks != c.asks || o.lost != c.lost || (out.Conversion != "") != c.created || out.Message == "" {
			t.Errorf("%s: %+v, asked %d times, a scan was asked for %d times", c.what, out, o.asks, o.lost)
		}
	}
	var all v1alpha1.ImageConversionList
	if err := o.Client.List(t.Context(), &all); err != nil || len(all.Items) != 2 {
		t.Errorf("there are %d conversions, %v", len(all.Items), err)
	}
	if _, err := o.Report(t.Context(), watch.Push{Registry: match.Key{Name: "none"}, Repository: "team/app", Tag: "v1"}); err != nil {
		t.Errorf("of a registry without rules: %v", err)
	}
}

// TestVerdicts holds one rule against addresses, with and without its Registry.
func TestVerdicts(t *testing.T) {
	rule := &v1alpha1.AccelerationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rule"}}
	rule.Spec.Trigger = v1alpha1.RuleTrigger{RegistryRef: v1alpha1.LocalReference{Name: "main"}, Namespace: "team", Repository: "app"}
	reg := &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "main"}, Spec: v1alpha1.RegistrySpec{Endpoint: "https://r.example"}}
	for _, c := range []struct {
		registry        *v1alpha1.Registry
		address, reason string
	}{
		{nil, "any.example/team/app:v1", v1alpha1.ReasonMatched}, {reg, "r.example/team/app:v1", v1alpha1.ReasonAccelerationDisabled},
		{reg, "other.example/team/app:v1", v1alpha1.ReasonNoRuleMatches}, {nil, "any.example/team/web:v1", v1alpha1.ReasonNoRuleMatches},
		{nil, "team app", v1alpha1.ReasonBadAddress},
	} {
		if v := Verify(rule, c.registry, c.address); v.Reason != c.reason || v.Matches != (c.reason == v1alpha1.ReasonMatched) || v.Image != c.address || v.Message == "" {
			t.Errorf("%s: %+v", c.address, v)
		}
	}
	rule.Spec.Trigger.Repository = "("
	if v := Verify(rule, nil, "r.example/team/app:v1"); v.Reason != v1alpha1.ReasonInvalid || v.Matches {
		t.Errorf("%+v", v)
	}
}

// TestCounts counts the tags of rules, and again only when something has changed.
func TestCounts(t *testing.T) {
	o := newOffice(t)
	c := &Counts{Book: o.Book, Inventory: o.Inventory}
	rule := match.Key{Namespace: "ns", Name: "rule"}
	of := func(want Count) {
		t.Helper()
		if n, complete, err := c.Of(t.Context(), registryKey, rule); n != want || complete || err != nil {
			t.Errorf("%+v, complete %v, %v; want %+v", n, complete, err, want)
		}
	}
	of(Count{})
	for _, tag := range []string{"a", "b"} {
		o.Inventory.Seen(registryKey, "team/app", tag, "d", "x", time.Now())
	}
	o.Inventory.Seen(registryKey, "other/app", "a", "d", "x", time.Now())
	of(Count{Matched: 2})
	o.Inventory.Accelerated(registryKey, "team/app", "a")
	of(Count{Matched: 2, Converted: 1})
	o.Inventory.Forget(registryKey)
	o.Book.stale.Store(true)
	of(Count{})
}
