package pool

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/opensandbox/operator/api/v1alpha1"
	"github.com/opensandbox/operator/controllers/ledger"
	"github.com/opensandbox/operator/controllers/podtemplate"
)

// judge finds out, once for each revision, whether the pods of a pool with strategy Restart
// can be made clean by a restart in place. It looks at one of them as it was admitted: a
// service account token, for one, is no part of the template.
func (p *pass) judge(ctx context.Context, snapshot *ledger.Snapshot) {
	if p.pool.Spec.RecycleStrategy.Type != v1alpha1.RecycleRestart {
		p.state.verdict = nil
		return
	}
	if p.state.verdict != nil {
		return
	}
	for i := range snapshot.Pods {
		known := &snapshot.Pods[i]
		if known.UID == "" || known.Revision != p.state.revision || known.Terminating || known.Gone {
			continue
		}
		pod := &corev1.Pod{}
		if err := p.APIReader.Get(ctx, types.NamespacedName{Namespace: p.key.Namespace, Name: known.Name}, pod); err != nil {
			log.FromContext(ctx).V(1).Info("it is not known yet whether sandboxes can be restarted in place", "pod", known.Name, "why", err.Error())
			return // the next pass asks again
		}
		pod.Spec.EphemeralContainers = nil // of this one pod
		verdict := podtemplate.Restartable(pod)
		p.state.verdict = &verdict
		return
	}
}

// restartable is the condition Restartable.
func (f *facts) restartable() metav1.Condition {
	c := metav1.Condition{
		Type: v1alpha1.ConditionRestartable, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonRestartable,
		Message: "sandboxes that come back are restarted in place",
	}
	if v := f.verdict; v.Reason != "" {
		c.Status, c.Reason, c.Message = metav1.ConditionFalse, v.Reason, "sandboxes that come back are deleted: "+v.Message
	}
	return c
}
