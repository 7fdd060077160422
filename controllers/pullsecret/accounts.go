package pullsecret

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/apparate/apparate/controllers/status"
)

// accounts attaches the wanted secrets to the namespace's service accounts, and
// takes out what we attached and is wanted no more.
//
// The list in a service account is one value to server-side apply (listType
// atomic), so applying our entries would take away those of others. It is patched
// over the version that was read instead; whoever writes in between makes the
// patch fail, and it is made anew from what they wrote.
func (v *visit) accounts(ctx context.Context, wanted map[string]*Entry) error {
	var list corev1.ServiceAccountList
	if err := v.Cache.List(ctx, &list, client.InNamespace(v.namespace)); err != nil {
		return fmt.Errorf("listing the service accounts of namespace %s: %w", v.namespace, err)
	}
	for i := range list.Items {
		before := &list.Items[i]
		if !before.DeletionTimestamp.IsZero() {
			continue
		}
		now := before.DeepCopy()
		changed := attach(now, wanted, v.list.Keeps)
		v.counts.attachments += len(attached(now))
		if !changed {
			continue
		}
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		if err := v.Client.Patch(ctx, now, patch, client.FieldOwner(status.FieldOwner)); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("imagePullSecrets of service account %s/%s: %w", v.namespace, before.Name, err)
		}
		v.Metrics.wrote("serviceaccount-patched")
	}
	return nil
}

// attached are the references that we added.
func attached(sa *corev1.ServiceAccount) []string {
	return strings.FieldsFunc(sa.Annotations[Attached], func(r rune) bool { return r == ',' || r == ' ' })
}

// attach changes a service account to what is wanted, and reports whether
// anything was to change. A reference that somebody else made is theirs, also
// when it is to a Secret of ours.
func attach(sa *corev1.ServiceAccount, wanted map[string]*Entry, keeps func(name string) bool) bool {
	ours := attached(sa)
	var now []string
	changed := false
	for _, name := range ours {
		e := wanted[name]
		if (e != nil && e.For(sa.Name)) || (e == nil && keeps(name)) {
			now = append(now, name)
			continue
		}
		sa.ImagePullSecrets = slices.DeleteFunc(sa.ImagePullSecrets, func(r corev1.LocalObjectReference) bool { return r.Name == name })
		changed = true
	}
	for _, name := range sorted(wanted) {
		if !wanted[name].For(sa.Name) || slices.Contains(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: name}) {
			continue
		}
		sa.ImagePullSecrets = append(sa.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
		if !slices.Contains(now, name) {
			now = append(now, name)
		}
		changed = true
	}
	if !changed {
		return false
	}
	if len(now) == 0 {
		delete(sa.Annotations, Attached)
		return true
	}
	if sa.Annotations == nil {
		sa.Annotations = map[string]string{}
	}
	slices.Sort(now)
	sa.Annotations[Attached] = strings.Join(now, ",")
	return true
}
