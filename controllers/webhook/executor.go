package webhook

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// dangerous capabilities let a sandbox take over the executor beside it.
var dangerous = []string{"SYS_PTRACE", "SYS_ADMIN", "ALL"}

// besideExecutor returns what must not stand in a pod with an executor: one that the
// operator adds, or one that the template has.
func besideExecutor(template *corev1.PodTemplateSpec, injected bool) []metav1.StatusCause {
	spec := &templateOf(template).Spec
	all := map[string][]corev1.Container{"containers": spec.Containers, "initContainers": spec.InitContainers}
	if !injected && !slices.ContainsFunc(append(slices.Clone(spec.Containers), spec.InitContainers...), isExecutor) {
		return nil
	}
	var causes []metav1.StatusCause
	refuse := func(field, why string) {
		causes = append(causes, cause(metav1.CauseTypeForbidden, templateField+".spec."+field, errors.New(why)))
	}
	if spec.HostNetwork {
		refuse("hostNetwork", "must not be true in a pod with a task executor: its port would be the node's")
	}
	for _, list := range []string{"containers", "initContainers"} {
		for i := range all[list] {
			c := &all[list][i]
			if isExecutor(*c) || c.SecurityContext == nil {
				continue
			}
			at := fmt.Sprintf("%s[%d].securityContext", list, i)
			if ptr.Deref(c.SecurityContext.Privileged, false) {
				refuse(at+".privileged", "must not be true beside a task executor: the container could take it over")
			}
			if c.SecurityContext.Capabilities == nil {
				continue
			}
			for _, added := range c.SecurityContext.Capabilities.Add {
				if slices.Contains(dangerous, strings.TrimPrefix(strings.ToUpper(string(added)), "CAP_")) {
					refuse(at+".capabilities.add", fmt.Sprintf("must not hold %s beside a task executor: the container could take it over", added))
				}
			}
		}
	}
	return causes
}

func isExecutor(c corev1.Container) bool { return c.Name == v1alpha1.ExecutorContainerName }
