package apiwrite

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestRefused(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	tests := map[string]struct {
		err  error
		want bool
	}{
		"invalid is final":                        {apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, "a", nil), true},
		"forbidden is final":                      {apierrors.NewForbidden(pods, "a", errors.New("no")), true},
		"not found is final":                      {apierrors.NewNotFound(pods, "a"), true},
		"a wrapped refusal is final":              {fmt.Errorf("creating: %w", apierrors.NewBadRequest("no")), true},
		"a conflict may hide a write that worked": {apierrors.NewConflict(pods, "a", errors.New("changed")), false},
		"too many requests is not final":          {apierrors.NewTooManyRequests("later", 1), false},
		"a server timeout may have been done":     {apierrors.NewServerTimeout(pods, "patch", 1), false},
		"an internal error may have been done":    {apierrors.NewInternalError(errors.New("etcd")), false},
		"a client timeout may have been done":     {context.DeadlineExceeded, false},
		"what etcd cannot take is final":          {apierrors.NewInternalError(errors.New("etcdserver: request is too large")), true},
		"what its client cannot send is final":    {apierrors.NewInternalError(errors.New("rpc error: code = ResourceExhausted desc = trying to send message larger than max (2097263 vs. 2097152)")), true},
		"no error":                                {nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, Refused(test.err)) })
	}
}
