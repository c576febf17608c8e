package apiwrite

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// Later says that a is a later resourceVersion than b. Of two objects that had one name
// one after the other, every version of the second is later than any of the first. A
// version that cannot be compared is not later.
func Later(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order > 0
}

// Newest is the newest version of an object that this process knows. The cache shows a
// write some time after the API server has answered it. A reconciler that took the cache
// for the newest version in between would do the write again, or undo it. The zero value
// is ready to use; its user calls it from one goroutine at a time.
type Newest[T interface {
	comparable
	metav1.Object
}] struct{ answer T }

// Note takes in the object as the API server has answered it. Nobody may change it
// afterwards.
func (n *Newest[T]) Note(answer T) { n.answer = answer }

// Of returns the later of what the cache shows and the last answer, which is forgotten
// as soon as the cache is not older. Nobody may change what is returned. Where the two
// cannot be compared it is the cached one: what is written has its version as a
// precondition, so a cache that is too old costs a conflict and no more.
//
// The answer to the write that took the last finalizer of a deleted object has the version of
// before that write, since no later one was stored: the object was gone then.
func (n *Newest[T]) Of(cached T) T {
	var none T
	if n.answer != none && (wentWith(n.answer, cached) || Later(n.answer.GetResourceVersion(), cached.GetResourceVersion())) {
		return n.answer
	}
	n.answer = none
	return cached
}

// wentWith says that the object, which the cache still shows, went with this answer.
func wentWith[T metav1.Object](answer, cached T) bool {
	return answer.GetUID() == cached.GetUID() && answer.GetDeletionTimestamp() != nil && len(answer.GetFinalizers()) == 0
}
