package conversion

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/watch"
)

func newClient(t testing.TB, objects ...client.Object) client.Client {
	t.Helper()
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(objects...).WithStatusSubresource(&v1alpha1.ImageConversion{})
	for name, f := range Indexers() {
		b = b.WithIndex(&v1alpha1.ImageConversion{}, name, f)
	}
	return b.Build()
}

func wish(digest string, o watch.Origin) Wish {
	return Wish{
		Registry: &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "main"}},
		Rule:     &v1alpha1.AccelerationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rule", UID: "rule-uid"}},
		Origin:   o,
		Spec: v1alpha1.ImageConversionSpec{
			RegistryRef: v1alpha1.LocalReference{Name: "main"}, Repository: "team/app", Tag: "v1", Digest: digest,
			RuleRef: &v1alpha1.LocalReference{Name: "rule"},
		},
		UpToDate: func(context.Context) (bool, error) { return true, nil },
	}
}

// finish gives a conversion an end.
func finish(t *testing.T, c client.Client, name string, s metav1.ConditionStatus, reason string) types.UID {
	t.Helper()
	var o v1alpha1.ImageConversion
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, &o); err != nil {
		t.Fatal(err)
	}
	o.UID = types.UID("uid-of-" + reason)
	meta.SetStatusCondition(&o.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionSucceeded, Status: s, Reason: reason})
	if err := c.Status().Update(t.Context(), &o); err != nil {
		t.Fatal(err)
	}
	return o.UID
}

// TestAdd proves when a push that was seen before leads to another conversion.
func TestAdd(t *testing.T) {
	const digest = "sha256:1"
	no := func(context.Context) (bool, error) { return false, nil }
	for _, c := range []struct {
		what     string
		status   metav1.ConditionStatus // of the one that is there; "" for unfinished
		reason   string
		origin   watch.Origin
		upToDate func(context.Context) (bool, error)
		anew     bool
	}{
		{"it waits", "", "", watch.Webhook, no, false},
		{"it succeeded and is there", metav1.ConditionTrue, v1alpha1.ReasonConverted, watch.Webhook, nil, false},
		{"it succeeded and was replaced: the tag went back", metav1.ConditionTrue, v1alpha1.ReasonConverted, watch.Webhook, no, true},
		{"the same, found by a scan", metav1.ConditionTrue, v1alpha1.ReasonConverted, watch.Scan, no, true},
		{"it failed and is pushed again", metav1.ConditionFalse, "PushDenied", watch.Webhook, no, true},
		{"it failed and a scan sees the same", metav1.ConditionFalse, "PushDenied", watch.Scan, no, false},
		{"it was superseded and came back", metav1.ConditionFalse, v1alpha1.ReasonSuperseded, watch.Scan, no, true},
		{"its rule was gone and came back", metav1.ConditionFalse, v1alpha1.ReasonRuleGone, watch.Scan, no, true},
	} {
		k := newClient(t)
		q := &Queue{Client: k, MaxScanned: 10, MaxTotal: 10, Backlog: &Backlog{}}
		w := wish(digest, c.origin)
		name, created, err := q.Add(t.Context(), w)
		if err != nil || !created {
			t.Fatalf("%s: %v, %v", c.what, created, err)
		}
		if c.status != "" {
			finish(t, k, name, c.status, c.reason)
		}
		if c.upToDate != nil {
			w.UpToDate = c.upToDate
		}
		again, created, err := q.Add(t.Context(), w)
		var o v1alpha1.ImageConversion
		err = errors.Join(err, k.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: again}, &o))
		if err != nil || again != name || created != c.anew || c.anew && len(o.Status.Conditions) > 0 {
			t.Errorf("%s: %q, anew %v, %v, %+v", c.what, again, created, err, o.Status)
		}
	}
}

// TestAddObject looks at what is created.
func TestAddObject(t *testing.T) {
	k := newClient(t)
	q := &Queue{Client: k, MaxScanned: 1, MaxTotal: 2, Backlog: &Backlog{}}
	name, _, err := q.Add(t.Context(), wish("sha256:1", watch.Webhook))
	if err != nil {
		t.Fatal(err)
	}
	var o v1alpha1.ImageConversion
	if err := k.Get(t.Context(), client.ObjectKey{Namespace: "ns", Name: name}, &o); err != nil {
		t.Fatal(err)
	}
	if o.Labels[v1alpha1.LabelRegistry] != "main" || o.Labels[v1alpha1.LabelRule] != "rule" || o.Annotations[v1alpha1.AnnotationOrigin] != "webhook" ||
		len(o.OwnerReferences) != 1 || o.OwnerReferences[0].UID != "rule-uid" || o.OwnerReferences[0].BlockOwnerDeletion != nil {
		t.Errorf("%+v", o)
	}
	// Enough waits for a scan, not for a push.
	q.Backlog.OnAdd(&o, false)
	if _, _, err := q.Add(t.Context(), wish("sha256:2", watch.Scan)); !errors.Is(err, watch.ErrBusy) {
		t.Errorf("a scan adds: %v", err)
	}
	if _, created, err := q.Add(t.Context(), wish("sha256:2", watch.Webhook)); err != nil || !created {
		t.Errorf("%v, %v", created, err)
	}
	second := o.DeepCopy()
	second.UID = "second"
	q.Backlog.OnAdd(second, false)
	if _, _, err := q.Add(t.Context(), wish("sha256:3", watch.Webhook)); !errors.Is(err, watch.ErrBusy) {
		t.Errorf("a push adds: %v", err)
	}
	q.Backlog.OnDelete(second)
	meta.SetStatusCondition(&o.Status.Conditions, metav1.Condition{Type: v1alpha1.ConditionSucceeded, Status: metav1.ConditionTrue, Reason: "x"})
	q.Backlog.OnUpdate(nil, &o)
	if n := q.Backlog.Len(); n != 0 {
		t.Errorf("%d are unfinished", n)
	}
}

// TestName proves that names are valid, tell something, and differ where the work
// does.
func TestName(t *testing.T) {
	base := wish("sha256:1", watch.Scan).Spec
	names := map[string]string{}
	for what, change := range map[string]func(*v1alpha1.ImageConversionSpec){
		"base": func(*v1alpha1.ImageConversionSpec) {}, "digest": func(s *v1alpha1.ImageConversionSpec) { s.Digest = "sha256:2" },
		"tag": func(s *v1alpha1.ImageConversionSpec) { s.Tag = "V1" }, "repository": func(s *v1alpha1.ImageConversionSpec) { s.Repository = "other/app" },
		"registry": func(s *v1alpha1.ImageConversionSpec) { s.RegistryRef.Name = "x" }, "platforms": func(s *v1alpha1.ImageConversionSpec) { s.Platforms = []v1alpha1.Platform{"linux/amd64"} },
		"long": func(s *v1alpha1.ImageConversionSpec) {
			s.Repository, s.Tag = strings.Repeat("a/b_", 60)+"c", strings.Repeat("_", 119)
		},
	} {
		s := base
		change(&s)
		n := Name(&s)
		if other, taken := names[n]; taken {
			t.Errorf("%s and %s are both %s", what, other, n)
		}
		names[n] = what
		if bad := validation.IsDNS1123Label(n); len(bad) > 0 {
			t.Errorf("%s: %s: %v", what, n, bad)
		}
	}
	two := base
	two.Platforms = []v1alpha1.Platform{"linux/arm64", "linux/amd64"}
	three := base
	three.Platforms = []v1alpha1.Platform{"linux/amd64", "linux/arm64"}
	three.RuleRef = nil
	if Name(&two) != Name(&three) || !strings.HasPrefix(Name(&two), "app-v1-") {
		t.Errorf("%s, %s", Name(&two), Name(&three))
	}
}

// TestJanitor proves what is kept: what has not ended, and of the rest the newest.
func TestJanitor(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	var objects []client.Object
	add := func(ns, name string, s metav1.ConditionStatus, age time.Duration) {
		end := metav1.NewTime(now.Add(-age))
		o := &v1alpha1.ImageConversion{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, CreationTimestamp: end}}
		if s != "" {
			o.Status.CompletionTime = &end
			o.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionSucceeded, Status: s, Reason: "x", LastTransitionTime: end}}
		}
		objects = append(objects, o)
	}
	add("ns", "waits", "", 100*time.Hour)
	add("ns", "retries", metav1.ConditionUnknown, 100*time.Hour)
	for i := range 4 {
		add("ns", fmt.Sprintf("done-%d", i), metav1.ConditionTrue, time.Duration(i)*time.Hour)
	}
	add("other", "old", metav1.ConditionFalse, 50*time.Hour)
	add("other", "young", metav1.ConditionFalse, time.Hour)
	k := newClient(t, objects...)
	j := &Janitor{Client: k, MaxAge: 48 * time.Hour, MaxCount: 2, Now: func() time.Time { return now }}
	if err := j.Clean(t.Context()); err != nil {
		t.Fatal(err)
	}
	var l v1alpha1.ImageConversionList
	if err := k.List(t.Context(), &l); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, o := range l.Items {
		left = append(left, o.Name)
	}
	if got := strings.Join(left, " "); got != "done-0 done-1 retries waits young" {
		t.Errorf("left are %s", got)
	}
}

func TestBackoff(t *testing.T) {
	r := &Reconciler{FirstRetry: time.Second, MaxRetry: time.Minute}
	for n, want := range map[int32]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 7: time.Minute, 1000: time.Minute} {
		for range 100 {
			if got := r.backoff(n); got < want*9/10 || got > want*11/10 {
				t.Errorf("after failure %d: %v, want about %v", n, got, want)
			}
		}
	}
}
