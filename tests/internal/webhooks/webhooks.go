// Package webhooks tells tests whether the API server asks the operator's webhooks.
package webhooks

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/opensandbox/operator/api/v1alpha1"
)

// ErrNotAsked says that the API server accepted what the webhooks refuse.
var ErrNotAsked = errors.New("a misspelt field was accepted: the webhook was not asked")

// Asked returns nil if the API server refuses, as a dry run, a BatchSandbox whose template
// has a misspelt field. The CRDs do not know the fields of pods, so only the webhook can
// refuse it, and it does where the API server reaches it and trusts its certificate. The
// webhooks fail open and the API server learns of them by watches: after any change of the
// operator's Deployment, a caller asks until the answer is the expected one.
func Asked(ctx context.Context, api client.Client, namespace string) error {
	misspelt := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"contaners": []any{}}}}}}
	misspelt.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind(v1alpha1.KindBatchSandbox))
	misspelt.SetNamespace(namespace)
	misspelt.SetName("misspelt")
	err := api.Create(ctx, misspelt, client.DryRunAll)
	switch {
	case err == nil:
		return ErrNotAsked
	case strings.Contains(err.Error(), `unknown field "spec.contaners"`):
		return nil
	default:
		return fmt.Errorf("creating a BatchSandbox with a misspelt field: %w", err)
	}
}
