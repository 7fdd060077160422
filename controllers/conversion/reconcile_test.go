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
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/apparate/apparate/api/v1alpha1"
	"github.com/apparate/apparate/controllers/registry"
	"github.com/apparate/apparate/converter"
	"github.com/apparate/apparate/converter/fault"
)

// events notes the reasons of events.
type events struct{ reasons []string }

func (e *events) Event(_ runtime.Object, _, reason, _ string) {
	e.reasons = append(e.reasons, reason)
}

// clinic is a reconciler of one conversion whose task the test moves by hand.
type clinic struct {
	*Reconciler
	t      *testing.T
	events *events
	now    time.Time
	// onWrite is called when a status is written; it may be nil.
	onWrite func()
	wanted  func() (bool, string, string, error)
}

var theKey = client.ObjectKey{Namespace: "ns", Name: "c"}

func newClinic(t *testing.T, change ...func(*v1alpha1.ImageConversion)) *clinic {
	t.Helper()
	c := &v1alpha1.ImageConversion{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c", UID: "uid", Generation: 1}}
	c.Spec = v1alpha1.ImageConversionSpec{RegistryRef: v1alpha1.LocalReference{Name: "main"}, Repository: "team/app", Tag: "v1", Digest: "sha256:" + strings.Repeat("1", 64)}
	for _, f := range change {
		f(c)
	}
	reg := &v1alpha1.Registry{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "main"}, Spec: v1alpha1.RegistrySpec{Endpoint: "r.example"}}
	k := &clinic{t: t, events: &events{}, now: time.Unix(1_700_000_000, 0)}
	s := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(s); err != nil {
		t.Fatal(err)
	}
	b := fake.NewClientBuilder().WithScheme(s).WithObjects(c, reg).WithStatusSubresource(&v1alpha1.ImageConversion{})
	for name, f := range Indexers() {
		b = b.WithIndex(&v1alpha1.ImageConversion{}, name, f)
	}
	b = b.WithInterceptorFuncs(interceptor.Funcs{SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
		if k.onWrite != nil {
			k.onWrite()
		}
		return c.SubResource(sub).Apply(ctx, o, opts...)
	}})
	k.Reconciler = &Reconciler{
		Client: b.Build(), Access: &registry.Store{}, Pool: &Pool{Workers: 1, PerRegistry: 1}, Events: k.events,
		Wanted: func(context.Context, *v1alpha1.ImageConversion) (bool, string, string, error) {
			if k.wanted != nil {
				return k.wanted()
			}
			return true, "", "", nil
		},
		Moved:       func(context.Context, *v1alpha1.Registry, *v1alpha1.ImageConversion) (bool, error) { return false, nil },
		MaxAttempts: 3, FirstRetry: time.Minute, MaxRetry: time.Hour, Timeout: time.Minute,
		Now: func() time.Time { return k.now },
	}
	return k
}

// visit reconciles once and returns the conversion as it is then.
func (k *clinic) visit() (*v1alpha1.ImageConversion, time.Duration) {
	k.t.Helper()
	r, err := k.Reconcile(k.t.Context(), reconcile.Request{NamespacedName: theKey})
	if err != nil {
		k.t.Fatal(err)
	}
	var c v1alpha1.ImageConversion
	if err := k.Client.Get(k.t.Context(), theKey, &c); err != nil {
		k.t.Fatal(err)
	}
	return &c, r.RequeueAfter
}

// task puts the task of the conversion into a state.
func (k *clinic) task(s State, out Outcome) {
	k.Pool.mu.Lock()
	defer k.Pool.mu.Unlock()
	k.Pool.tasks["uid"].state, k.Pool.tasks["uid"].outcome = s, out
}

func (k *clinic) expect(what string, c *v1alpha1.ImageConversion, s metav1.ConditionStatus, reason string) {
	k.t.Helper()
	got := meta.FindStatusCondition(c.Status.Conditions, v1alpha1.ConditionSucceeded)
	if got == nil || got.Status != s || got.Reason != reason {
		k.t.Errorf("%s: %+v, want %s %s", what, got, s, reason)
	}
}

// TestVisit follows a conversion from its first visit to its end.
func TestVisit(t *testing.T) {
	k := newClinic(t)
	c, _ := k.visit()
	k.expect("at first", c, metav1.ConditionUnknown, v1alpha1.ReasonQueued)
	if c.Status.Source != "r.example/team/app:v1" || c.Status.Target != "r.example/team/app:v1-apparate" {
		t.Errorf("%+v", c.Status)
	}
	k.task(Running, Outcome{})
	c, _ = k.visit()
	k.expect("when it runs", c, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	if c.Status.Attempts != 1 || c.Status.StartTime == nil {
		t.Errorf("%+v", c.Status)
	}
	k.task(Done, Outcome{Elapsed: 1300 * time.Millisecond, Revision: "r", Result: converter.Result{
		Observation: converter.Observation{SourceDigest: "s", TargetDigest: "t"}, Layers: 3, Converted: 2, Reused: 1, BytesIn: 7,
	}})
	c, _ = k.visit()
	k.expect("when it is done", c, metav1.ConditionTrue, v1alpha1.ReasonConverted)
	if s := c.Status; s.TargetDigest != "t" || s.Layers.Total != 3 || s.Bytes.In != 7 || s.Duration != "1.3s" || s.CompletionTime == nil || s.Attempts != 1 {
		t.Errorf("%+v", s)
	}
	if s := k.Pool.State("uid"); s != Absent {
		t.Errorf("its task is in state %d", s)
	}
	if fmt.Sprint(k.events.reasons) != "[Converted]" {
		t.Errorf("events: %v", k.events.reasons)
	}
}

// TestOutcomeKept proves that an outcome that comes while a status is written is not
// lost with it.
func TestOutcomeKept(t *testing.T) {
	k := newClinic(t)
	k.visit()
	k.task(Running, Outcome{})
	k.onWrite = func() { k.task(Done, Outcome{Err: fault.New(fault.PushDenied, nil, "no right")}) }
	c, _ := k.visit()
	k.expect("what was seen is written", c, metav1.ConditionUnknown, v1alpha1.ReasonRunning)
	k.onWrite = nil
	c, _ = k.visit()
	k.expect("what came meanwhile is written next", c, metav1.ConditionFalse, "PushDenied")
}

// TestEnds tells which failures are final, and what is done about the others.
func TestEnds(t *testing.T) {
	passing := fault.NewTemporary(fault.RegistryError, nil, "it failed")
	for _, c := range []struct {
		what     string
		out      Outcome
		attempts int32 // before
		byHand   bool
		status   metav1.ConditionStatus
		reason   string
		wait     time.Duration // at least
	}{
		{"was there already", Outcome{Result: converter.Result{Observation: converter.Observation{UpToDate: true}}}, 1, false, metav1.ConditionTrue, v1alpha1.ReasonUpToDate, 0},
		{"denied", Outcome{Err: fault.New(fault.PullDenied, nil, "no")}, 1, false, metav1.ConditionFalse, "PullDenied", 0},
		{"may pass", Outcome{Err: passing}, 1, false, metav1.ConditionUnknown, v1alpha1.ReasonRetrying, 50 * time.Second},
		{"may pass, the second time", Outcome{Err: passing}, 2, false, metav1.ConditionUnknown, v1alpha1.ReasonRetrying, 100 * time.Second},
		{"the registry wants rest", Outcome{Err: fault.NewTemporary(fault.RegistryError, nil, "busy").WithAfter(2 * time.Hour)}, 1, false, metav1.ConditionUnknown, v1alpha1.ReasonRetrying, 2 * time.Hour},
		{"failed too often", Outcome{Err: passing}, 3, false, metav1.ConditionFalse, v1alpha1.ReasonGaveUp, 0},
		{"took too long", Outcome{Err: fault.NewTemporary(fault.Canceled, nil, "x"), Cause: fmt.Errorf("longer than 1m: %w", context.DeadlineExceeded)}, 1, false, metav1.ConditionUnknown, v1alpha1.ReasonRetrying, 50 * time.Second},
		{"the operator stops", Outcome{Err: fault.NewTemporary(fault.Canceled, nil, "x"), Cause: context.Canceled}, 1, false, metav1.ConditionUnknown, v1alpha1.ReasonQueued, time.Second},
		{"overtaken", Outcome{Err: errors.New("x"), Cause: ErrSuperseded}, 1, false, metav1.ConditionFalse, v1alpha1.ReasonSuperseded, 0},
		{"overtaken, the converter noticed", Outcome{Err: fault.NewTemporary(fault.Superseded, nil, "x")}, 1, false, metav1.ConditionFalse, v1alpha1.ReasonSuperseded, 0},
		{"overtaken, and wanted for whatever the tag is", Outcome{Err: fault.NewTemporary(fault.Superseded, nil, "x")}, 1, true, metav1.ConditionUnknown, v1alpha1.ReasonRetrying, 50 * time.Second},
	} {
		k := newClinic(t, func(o *v1alpha1.ImageConversion) {
			o.Status.Attempts = c.attempts - 1
			if c.byHand {
				o.Spec.Digest = ""
			}
		})
		k.visit()
		k.task(Running, Outcome{})
		k.visit()
		k.task(Done, c.out)
		o, wait := k.visit()
		k.expect(c.what, o, c.status, c.reason)
		if wait < c.wait || c.wait == 0 && wait != 0 || o.Status.Attempts != c.attempts {
			t.Errorf("%s: again after %v, %d attempts", c.what, wait, o.Status.Attempts)
		}
		stalled := meta.IsStatusConditionTrue(o.Status.Conditions, v1alpha1.ConditionStalled)
		if want := c.status == metav1.ConditionFalse && c.reason != v1alpha1.ReasonSuperseded; stalled != want {
			t.Errorf("%s: stalled %v", c.what, stalled)
		}
		if c.reason == v1alpha1.ReasonRetrying {
			if _, again := k.visit(); again <= 0 || k.Pool.State("uid") != Absent {
				t.Errorf("%s: it does not wait", c.what)
			}
			k.now = k.now.Add(4 * time.Hour)
			if k.visit(); k.Pool.State("uid") == Absent {
				t.Errorf("%s: it is not tried again", c.what)
			}
		}
	}
}

// TestUnwanted proves what becomes of conversions that their rules let go.
func TestUnwanted(t *testing.T) {
	for reason, c := range map[string]struct {
		status metav1.ConditionStatus
		reason string
	}{
		v1alpha1.ReasonRuleSuspended:        {metav1.ConditionUnknown, v1alpha1.ReasonHeld},
		v1alpha1.ReasonAccelerationDisabled: {metav1.ConditionUnknown, v1alpha1.ReasonHeld},
		v1alpha1.ReasonNoRuleMatches:        {metav1.ConditionFalse, v1alpha1.ReasonRuleGone},
	} {
		k := newClinic(t)
		k.visit()
		k.wanted = func() (bool, string, string, error) { return false, reason, "because", nil }
		o, _ := k.visit()
		k.expect(reason, o, c.status, c.reason)
		if s := k.Pool.State("uid"); s != Absent {
			t.Errorf("%s: its task is in state %d", reason, s)
		}
		k.wanted = nil
		o, _ = k.visit()
		if c.status == metav1.ConditionUnknown {
			k.expect(reason+", and wanted again", o, metav1.ConditionUnknown, v1alpha1.ReasonQueued)
		}
	}
}
