package profile

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	api "github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/conversion"
	"github.com/apparate/apparate/controllers/match"
	access "github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/profile"
	oci "github.com/apparate/apparate/converter/registry"
	"github.com/apparate/apparate/test/images"
	testregistry "github.com/apparate/apparate/test/registry"
)

// mill is a keeper that works with a registry, in which an image was converted.
type mill struct {
	*Keeper
	works     *Registries
	t         *testing.T
	host      string
	plain     string // digest of the source
	index     string // of the accelerated index
	manifest  string // of its only platform
	clock     time.Time
	events    []string
	converted *v1alpha1.ImageConversion
	wanted    bool // by a rule
}

// Event implements status.Recorder.
func (m *mill) Event(o runtime.Object, kind, reason, message string) {
	m.events = append(m.events, fmt.Sprintf("%s %s %s %s", o.(client.Object).GetName(), kind, reason, message))
}

// content is that of the files of the image.
func content(file string) []byte { return []byte(strings.Repeat("the content of "+file+"\n", 100)) }

func newMill(t *testing.T) *mill {
	t.Helper()
	m := &mill{t: t, host: testregistry.New(t).Host(), clock: time.Now()}
	m.plain, m.index, m.manifest = m.convert("v1", "a", "b", "c", "d")
	m.keeper()
	return m
}

// convert pushes an image with these files, and converts it. It returns the digests of
// the source, of the accelerated index and of its only platform.
func (m *mill) convert(tagged string, files ...string) (plain, index, manifest string) {
	m.t.Helper()
	t := m.t
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f, Mode: 0o644, Size: int64(len(content(f)))})
		if _, werr := w.Write(content(f)); err != nil || werr != nil {
			t.Fatal(err, werr)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	img, err := images.Compose(images.Blob{Bytes: b.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	ix := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	tag, err := name.NewTag(m.host + "/team/app:" + tagged)
	if err == nil {
		err = remote.WriteIndex(tag, ix)
	}
	if err != nil {
		t.Fatal(err)
	}
	res, err := converter.New(converter.Options{TempDir: t.TempDir(), RetryWait: time.Millisecond}).Convert(t.Context(), converter.Request{Source: tag.String()})
	if err != nil {
		t.Fatal(err)
	}
	made, err := remote.Index(tag.Digest(res.TargetDigest))
	if err != nil {
		t.Fatal(err)
	}
	list, err := made.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	return res.SourceDigest, res.TargetDigest, list.Manifests[0].Digest.String()
}

// keeper makes the objects of the cluster, and a keeper.
func (m *mill) keeper() {
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		m.t.Fatal(err)
	}
	reg := func(ns string, on bool) *v1alpha1.Registry {
		return &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "main"}, Spec: v1alpha1.RegistrySpec{Endpoint: "http://" + m.host, AccelerationEnabled: on}}
	}
	m.converted = &v1alpha1.ImageConversion{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "app-v1"}}
	m.converted.Spec = v1alpha1.ImageConversionSpec{RegistryRef: v1alpha1.LocalReference{Name: "main"}, Repository: "team/app", Tag: "v1"}
	m.converted.Status.TargetDigest = m.index
	m.converted.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue}}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(reg("ns", true), reg("a-first", true), reg("off", false), m.converted).WithStatusSubresource(&v1alpha1.Registry{})
	for n, f := range conversion.Indexers() {
		b = b.WithIndex(&v1alpha1.ImageConversion{}, n, f)
	}
	c := b.Build()
	m.works = &Registries{
		Client: c, Access: &access.Store{Reader: c}, Events: m, TempDir: m.t.TempDir(),
		Matches: func(r match.Key, repository string) bool { return m.wanted && r.Namespace == "a-first" },
	}
	m.Keeper = &Keeper{Works: m.works, Now: func() time.Time { return m.clock }}
	m.init()
}

// start is a sample of a start that read files.
func (m *mill) start(manifest string, files ...string) *api.Sample {
	m.clock = m.clock.Add(2 * minPause)
	s := &api.Sample{Image: m.host + "/team/app", Manifest: manifest, Platform: "linux/amd64", Started: m.clock}
	var l api.SampleLayer
	for n, f := range files {
		l.Add(sha256.Sum256(content(f)), uint32(n))
	}
	s.Layers = []api.SampleLayer{l}
	return s
}

// take has a sample taken and what is due done.
func (m *mill) take(node string, s *api.Sample) Verdict {
	m.t.Helper()
	v, err := m.Take(m.t.Context(), node, s, 100)
	if err != nil && v != Foreign {
		m.t.Fatal(err)
	}
	for {
		r, _ := m.next()
		if r == nil {
			return v
		}
		m.work(m.t.Context(), r)
		if r.tries > 0 {
			m.t.Fatal("it failed; the log tells")
		}
	}
}

// has is which files the profile in the registry has, in their order.
func (m *mill) has() string {
	m.t.Helper()
	c, err := oci.New(oci.Options{RetryWait: time.Millisecond})
	if err != nil {
		m.t.Fatal(err)
	}
	ref, err := name.NewDigest(m.host + "/team/app@" + m.manifest)
	if err != nil {
		m.t.Fatal(err)
	}
	f, ok, err := profile.Find(m.t.Context(), c, ref)
	if err != nil {
		m.t.Fatal(err)
	}
	if !ok {
		return "none"
	}
	var out string
	for _, g := range f.Table.Groups {
		for _, chunk := range g.Chunks {
			for _, file := range []string{"a", "b", "c", "d"} {
				if api.ID(sha256.Sum256(content(file))) == chunk.ID {
					out += file
				}
			}
		}
	}
	return out
}

// TestPublish: the first start's sample becomes a profile beside the image, told on the
// conversion that made the image; a later one where starts read something else.
func TestPublish(t *testing.T) {
	m := newMill(t)
	if v := m.take("n1", m.start(m.manifest, "b", "a")); v != Taken {
		t.Fatal(v)
	}
	if got := m.has(); got != "ba" {
		t.Fatalf("the profile has %q", got)
	}
	if len(m.events) != 1 || !strings.HasPrefix(m.events[0], "app-v1 Normal ProfilePublished ") || !strings.Contains(m.events[0], "2 chunks") {
		t.Errorf("events: %q", m.events)
	}
	m.take("n2", m.start(m.manifest, "b", "a"))
	if len(m.events) != 1 {
		t.Errorf("events: %q", m.events)
	}
	for range 3 {
		m.take("n2", m.start(m.manifest, "b", "a", "d"))
	}
	if got := m.has(); got != "bad" || len(m.events) != 2 || !strings.Contains(m.events[1], "100 %") {
		t.Errorf("the profile has %q, events: %q", got, m.events)
	}
	// Another operator goes on where this one ended.
	m.keeper()
	m.events = nil
	m.take("n3", m.start(m.manifest, "c"))
	if got := m.has(); got != "bad" || len(m.events) != 0 {
		t.Errorf("after a restart the profile has %q, events: %q", got, m.events)
	}
}

// TestInherit: an image under another tag begins with the profile of an earlier one; its
// own starts then make one of its own, the first of them already.
func TestInherit(t *testing.T) {
	m := newMill(t)
	m.take("n1", m.start(m.manifest, "b", "a"))
	_, index, manifest := m.convert("v2", "a", "b", "d")
	c := m.converted.DeepCopy()
	c.Status.TargetDigest = index
	inherit := func(want float64) {
		t.Helper()
		r := prometheus.NewRegistry()
		m.Metrics = NewMetrics(r, m.Held)
		m.Converted(c)
		h, ok := m.heir()
		if !ok {
			t.Fatal("there is no heir")
		}
		m.inherit(t.Context(), h)
		if got := counted(t, r, "inherited"); got != want {
			t.Errorf("%v profiles are inherited, want %v", got, want)
		}
	}
	inherit(1)
	m.manifest = manifest
	if got := m.has(); got != "ba" {
		t.Errorf("the profile has %q", got)
	}
	inherit(0) // it has one
	m.take("n1", m.start(manifest, "b", "a", "d"))
	if got := m.has(); got != "bad" {
		t.Errorf("after a start the profile has %q", got)
	}
}

// TestHarmless: samples that name chunks which the image has not, of images that are
// none of ours or nowhere, lead to no profile, and do not keep good ones from it.
func TestHarmless(t *testing.T) {
	m := newMill(t)
	m.take("evil", m.start(m.manifest, "x", "y", "z"))
	if got := m.has(); got != "none" || len(m.events) != 0 {
		t.Errorf("chunks of other images made a profile with %q, events: %q", got, m.events)
	}
	for _, manifest := range []string{m.plain, m.index, "sha256:" + strings.Repeat("0", 64)} {
		m.take("evil", m.start(manifest, "a"))
		if v := m.take("evil", m.start(manifest, "b")); v != NotAccelerated {
			t.Errorf("a sample of %s is %s", manifest, v)
		}
	}
	for _, repository := range []string{m.host + "/other/app", "elsewhere.example/team/app", "", m.host, m.host + "/../app"} {
		s := m.start(m.manifest, "a")
		s.Image = repository
		if v, err := m.Take(t.Context(), "evil", s, 100); (v != Foreign && v != Malformed) || err == nil {
			t.Errorf("a sample of %q is %s", repository, v)
		}
	}
	m.take("n1", m.start(m.manifest, "x", "c", "y"))
	m.take("n1", m.start(m.manifest, "x", "c", "y"))
	if got := m.has(); got != "c" {
		t.Errorf("the profile has %q", got)
	}
}

// TestRegistryOf: of several Registries of one host the one is used that has converted
// something of the repository; without, one that has a rule; never one that is off.
func TestRegistryOf(t *testing.T) {
	m := newMill(t)
	namespaces := func() (list []string) {
		all, err := m.works.candidates(t.Context(), Image{m.host, "team/app", m.manifest})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			list = append(list, c.registry.Namespace)
		}
		return list
	}
	if got := fmt.Sprint(namespaces()); got != "[ns]" {
		t.Error(got)
	}
	m.wanted = true
	if got := fmt.Sprint(namespaces()); got != "[ns a-first]" {
		t.Error(got)
	}
	m.converted.Status.Conditions[0].Status = metav1.ConditionFalse
	c := m.works.Client.(client.Client)
	if err := c.Update(context.Background(), m.converted); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(namespaces()); got != "[a-first]" {
		t.Error(got)
	}
	if err := judge(errors.New("passes")); errors.Is(err, errUnwanted) {
		t.Error("an error that passes is taken for one that does not")
	}
}
