// SPDX-License-Identifier: MIT

package crashpoint

// The points of each program, in this order: controller, agent (with what package vm
// does inside it), vmm, guest, and the operator's commands on images. They are numbers, so that no name of any is in a release.
const (
	StoreCreated        Point = iota // the database file is there, without a schema
	StoreMigrated                    // the schema is there, without a site id
	SiteStored                       // the site id is stored, and not in the lock file beside the database
	IngestWritten                    // a delivery and its news are written, not committed
	IngestCommitted                  // they are committed, nobody was told
	CarryWritten                     // a plan is written, not committed
	CarryCommitted                   // it is committed, nothing of it was begun
	BackupCopied                     // a checked copy of the database is on the disk, without its name
	PruneStepped                     // one kind of old records is gone, the next is not
	DeliveryJudged                   // an authentic delivery was read, not stored
	DeliveryTaken                    // it is stored, not answered
	DeleteIntended                   // a deletion is recorded, GitHub was not asked
	DeleteDone                       // GitHub has deleted, which is not recorded
	DeleteVetoed                     // GitHub has refused, which is not recorded
	DeleteFailed                     // GitHub gave no answer, which is not recorded
	EnrolmentStored                  // an enrolment token is stored, nobody has seen it
	EnrolReceived                    // a host asks to join, nothing is recorded
	EnrolStored                      // it has joined and does not know it
	HelloStored                      // an agent's instance speaks and does not know it
	DesiredRead                      // what is wanted was read for an agent, not answered
	ReportReceived                   // a report came, it is not stored
	ReportStored                     // it is stored, not acknowledged
	MintCommitted                    // a registration's name is committed, GitHub was not asked
	MintRegistered                   // GitHub has registered it, which is not recorded
	MintGranted                      // that is recorded, the config is in memory alone
	MintRefused                      // GitHub has refused, which is not recorded
	EarlierIntended                  // the deletion of an earlier attempt is recorded, GitHub was not asked
	EarlierDeleted                   // GitHub has deleted it, which is not recorded
	EarlierVetoed                    // GitHub has refused to, which is not recorded
	InstallationsListed              // GitHub's list of installations was read, not stored
	InstallationsStored              // it is stored, early deliveries were not taken again
	JobsListed                       // GitHub's list of a repository's jobs was read, nothing of it is stored
	DeliveryPulled                   // a delivery was read from GitHub and stored, how far that has come is not
	RedeliveryAsked                  // GitHub was asked for a delivery again, which is not noted
	SetSessionOpened                 // a message session of a scale set is open, which is not recorded
	SetJobsAcquired                  // a scale set's jobs are acquired, nothing of their message is stored
	SetMessageStored                 // what a message said is stored, it is not acknowledged
	HostRemoved                      // a host is removed, its operator was not told

	FileWritten       // a file of the state folder is whole, not in its place
	CredentialWritten // the host has a secret, nobody has heard of it
	EnrolAnswered     // the host has joined, its identity is not written
	IdentityWritten   // it is written, the agent has not said hello
	HelloAnswered     // this instance is welcome and has asked nothing
	DesiredReceived   // a word of the controller came, nothing was begun
	EpochWritten      // the epoch that is obeyed is written, nothing was begun
	DesiredApplied    // what is wanted was begun
	RevisionWritten   // the revision obeyed is written, tombstones stand
	TombstoneDropped  // a runner is forgotten on disk
	RecordWritten     // a runner has a record and no VM
	BundleBegun       // an empty bundle lies aside, locked
	BundleFilled      // it is whole and still aside
	BundlePlaced      // it is in its place, its maker does not know
	VMMSpawned        // a vmm was started, and nobody noted which
	VMMReady          // it has said that it is ready, nobody watches it
	MintAsking        // the guest has no config, the controller was not asked
	MintAnswered      // a config came, nothing is recorded
	ConfigRecorded    // it is recorded as given, the guest does not have it
	ConfigDelivered   // the guest has taken it
	ConfigWithdrawn   // it is recorded that the guest has none after all
	EndTold           // the guest was told to end its listener
	ReportReady       // a report is made up, not sent
	ReportAnswered    // it is acknowledged, nothing was concluded
	FailureKept       // diagnostics are written, the VM was not stopped
	VMStopped         // the VM is off, its slot is not free
	TombstoneWritten  // a tombstone is written, the bundle is there
	BundleTrashed     // the bundle is no bundle any more, its files are there
	BundleRemoved     // they are gone, the record is there
	RecordDropped     // the record is gone, the end is not reported
	LeftoverRemoved   // something half made is gone, the rest was not looked at
	RecordMourned     // a record without a VM has its tombstone, and is there
	WriterEnded       // what a dead vmm left was killed, the lock was not looked at

	VMMLocked       // the bundle's lock is held, its one life has not begun
	VMMStatusOpened // the one life has begun, without a line
	VMMIdentified   // the vmm has noted who it is
	VMMStarting     // the first line is written, no socket is open
	VMMListening    // the sockets are open, nobody knows
	VMMAnnounced    // the agent knows, the backend is not open
	VMMOpened       // the backend is open, the machine is off
	WriterSpawned   // the guest's process runs, and is not noted
	WriterRecorded  // it is noted
	VMMStarted      // the machine runs, which is not written
	VMMRunning      // it is written
	VMMGuestReady   // it is written that the guest answers
	VMMEnding       // the end is ordered, which is not written
	VMMStopping     // it is written, the machine runs
	WriterGone      // nothing of the guest is left, the vmm was not told
	VMMEnded        // the machine is off, the final reason is not written
	VMMFinal        // it is written, the lock is held

	GuestReceived   // a config came, it was not taken
	GuestTaken      // it is taken, which is not answered
	ListenerStarted // the listener runs, nobody reads what it says
	ListenerBusy    // it has said that it runs a job, which is not in the status
	ListenerTold    // it was told to end
	ListenerExited  // it has ended, what it left was not
	GuestFinished   // its end is in the status
	GuestEndAsked   // the host asks for the end, nothing was done

	ChunkStored     // a chunk of an image is in its location, no manifest names it
	ChunksStored    // all chunks are, as far as was looked
	ChunksKept      // all were touched, there is no manifest
	ManifestStored  // there is, nothing was looked at again
	ManifestSealed  // the manifest is safe, no tag names it
	TagMoved        // the tag names it, which was not confirmed
	ManifestsMarked // a collection has listed the manifests, nothing is deleted
	ManifestDeleted // a manifest without a tag is deleted, its chunks are not
	ChunksMarked    // a collection has listed the chunks, none is deleted
	ChunkDeleted    // a chunk without a manifest is deleted, others are not

	ImageBegun    // an image's record is there, nothing of it was fetched
	ManifestKept  // its manifest is there, none of its files
	ChunkWritten  // a chunk was written, and not the next
	ImageRecorded // its files are durable and its record says what they are
	ImagePlaced   // it has its name, which may not be durable
	ImageTrashed  // an image's folder was renamed to be deleted, its record is there
	CacheSwept    // what an earlier process left was looked through, evicted files are there
)

// String returns the point's name: package, subject, and what has just happened.
func (p Point) String() string { return names()[p] }

func names() []string {
	return []string{
		StoreCreated:        "store.file.created",
		StoreMigrated:       "store.schema.migrated",
		SiteStored:          "store.site.stored",
		IngestWritten:       "store.ingest.written",
		IngestCommitted:     "store.ingest.committed",
		CarryWritten:        "store.carry.written",
		CarryCommitted:      "store.carry.committed",
		BackupCopied:        "store.backup.copied",
		PruneStepped:        "store.prune.stepped",
		DeliveryJudged:      "webhook.delivery.judged",
		DeliveryTaken:       "webhook.delivery.taken",
		DeleteIntended:      "autoscaler.delete.intended",
		DeleteDone:          "autoscaler.delete.done",
		DeleteVetoed:        "autoscaler.delete.vetoed",
		DeleteFailed:        "autoscaler.delete.failed",
		EnrolmentStored:     "hosts.enrolment.stored",
		EnrolReceived:       "hosts.enrol.received",
		EnrolStored:         "hosts.enrol.stored",
		HelloStored:         "hosts.hello.stored",
		DesiredRead:         "hosts.desired.read",
		ReportReceived:      "hosts.report.received",
		ReportStored:        "hosts.report.stored",
		MintCommitted:       "hosts.mint.committed",
		MintRegistered:      "hosts.mint.registered",
		MintGranted:         "hosts.mint.granted",
		MintRefused:         "hosts.mint.refused",
		EarlierIntended:     "hosts.earlier.intended",
		EarlierDeleted:      "hosts.earlier.deleted",
		EarlierVetoed:       "hosts.earlier.vetoed",
		InstallationsListed: "minifleet.installs.listed",
		InstallationsStored: "minifleet.installs.stored",
		JobsListed:          "reconcile.jobs.listed",
		DeliveryPulled:      "catchup.delivery.pulled",
		RedeliveryAsked:     "catchup.delivery.asked",
		SetSessionOpened:    "scalesets.session.opened",
		SetJobsAcquired:     "scalesets.jobs.acquired",
		SetMessageStored:    "scalesets.message.stored",
		HostRemoved:         "admin.host.removed",

		FileWritten:       "agent.file.written",
		CredentialWritten: "agent.credential.written",
		EnrolAnswered:     "agent.enrol.answered",
		IdentityWritten:   "agent.identity.written",
		HelloAnswered:     "agent.hello.answered",
		DesiredReceived:   "agent.desired.received",
		EpochWritten:      "agent.epoch.written",
		DesiredApplied:    "agent.desired.applied",
		RevisionWritten:   "agent.revision.written",
		TombstoneDropped:  "agent.tombstone.dropped",
		RecordWritten:     "agent.record.written",
		BundleBegun:       "vm.bundle.begun",
		BundleFilled:      "vm.bundle.filled",
		BundlePlaced:      "vm.bundle.placed",
		VMMSpawned:        "vm.vmm.spawned",
		VMMReady:          "vm.vmm.ready",
		MintAsking:        "agent.mint.asking",
		MintAnswered:      "agent.mint.answered",
		ConfigRecorded:    "agent.config.recorded",
		ConfigDelivered:   "agent.config.delivered",
		ConfigWithdrawn:   "agent.config.withdrawn",
		EndTold:           "agent.end.told",
		ReportReady:       "agent.report.ready",
		ReportAnswered:    "agent.report.answered",
		FailureKept:       "agent.failure.kept",
		VMStopped:         "agent.vm.stopped",
		TombstoneWritten:  "agent.tombstone.written",
		BundleTrashed:     "vm.bundle.trashed",
		BundleRemoved:     "vm.bundle.removed",
		RecordDropped:     "agent.record.dropped",
		LeftoverRemoved:   "agent.leftover.removed",
		RecordMourned:     "agent.record.mourned",
		WriterEnded:       "vm.writer.ended",

		VMMLocked:       "vmm.lock.taken",
		VMMStatusOpened: "vmm.status.opened",
		VMMIdentified:   "vmm.identity.written",
		VMMStarting:     "vmm.starting.written",
		VMMListening:    "vmm.sockets.open",
		VMMAnnounced:    "vmm.ready.said",
		VMMOpened:       "vmm.backend.opened",
		WriterSpawned:   "vmm.writer.spawned",
		WriterRecorded:  "vmm.writer.recorded",
		VMMStarted:      "vmm.machine.started",
		VMMRunning:      "vmm.running.written",
		VMMGuestReady:   "vmm.guest.ready",
		VMMEnding:       "vmm.machine.ending",
		VMMStopping:     "vmm.stopping.written",
		WriterGone:      "vmm.writer.gone",
		VMMEnded:        "vmm.machine.ended",
		VMMFinal:        "vmm.final.written",

		GuestReceived:   "guest.config.received",
		GuestTaken:      "guest.config.taken",
		ListenerStarted: "guest.listener.started",
		ListenerBusy:    "guest.listener.busy",
		ListenerTold:    "guest.listener.told",
		ListenerExited:  "guest.listener.exited",
		GuestFinished:   "guest.status.finished",
		GuestEndAsked:   "guest.end.asked",

		ChunkStored:     "publish.chunk.stored",
		ChunksStored:    "publish.chunks.stored",
		ChunksKept:      "publish.chunks.kept",
		ManifestStored:  "publish.manifest.stored",
		ManifestSealed:  "publish.manifest.sealed",
		TagMoved:        "publish.tag.moved",
		ManifestsMarked: "publish.manifests.marked",
		ManifestDeleted: "publish.manifest.deleted",
		ChunksMarked:    "publish.chunks.marked",
		ChunkDeleted:    "publish.chunk.deleted",

		ImageBegun:    "imagecache.image.begun",
		ManifestKept:  "imagecache.manifest.kept",
		ChunkWritten:  "imagecache.chunk.written",
		ImageRecorded: "imagecache.image.recorded",
		ImagePlaced:   "imagecache.image.placed",
		ImageTrashed:  "imagecache.image.trashed",
		CacheSwept:    "imagecache.leftovers.swept",
	}
}

// All lists every point.
func All() []Point { return span(0, Point(len(names())-1)) }

// Controller lists the controller's points.
func Controller() []Point { return span(StoreCreated, HostRemoved) }

// ScaleSets lists those of them that only a controller of scale sets reaches.
func ScaleSets() []Point { return span(SetSessionOpened, SetMessageStored) }

// Agent lists the agent's points.
func Agent() []Point { return span(FileWritten, WriterEnded) }

// VMM lists the vmm's points.
func VMM() []Point { return span(VMMLocked, VMMFinal) }

// Guest lists the guest's points.
func Guest() []Point { return span(GuestReceived, GuestEndAsked) }

// Images lists the points of the operator's commands on published images.
func Images() []Point { return span(ChunkStored, ChunkDeleted) }

// Cache lists the points of a host's cache of images.
func Cache() []Point { return span(ImageBegun, CacheSwept) }

func span(first, last Point) []Point {
	var list []Point
	for p := first; p <= last; p++ {
		list = append(list, p)
	}
	return list
}
