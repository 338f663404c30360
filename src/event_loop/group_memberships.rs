use super::log_group::LogGroupKey;

/// The [groups](super::log_group::LogGroup) of one connection.
///
/// Most connections have one group, which needs no allocation.
#[derive(Debug, Default)]
pub(super) enum GroupMemberships {
    #[default]
    None,
    One(GroupMembership),
    /// The memberships in the order of their keys.
    Several(Box<[GroupMembership]>),
}

/// The place of a connection in one of its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupMembership {
    pub(super) key: LogGroupKey,
    /// The index of the connection among the members of the group.
    pub(super) member_index: u32,
}

impl GroupMemberships {
    /// Creates the memberships of a connection: at most one for each group, in the order of their keys.
    pub(super) fn new(memberships: Vec<GroupMembership>) -> Self {
        debug_assert!(memberships.is_sorted_by(|one, next| one.key < next.key));
        match memberships[..] {
            [] => Self::None,
            [membership] => Self::One(membership),
            _ => Self::Several(memberships.into()),
        }
    }

    pub(super) fn as_slice(&self) -> &[GroupMembership] {
        match self {
            Self::None => &[],
            Self::One(membership) => std::slice::from_ref(membership),
            Self::Several(memberships) => memberships,
        }
    }

    /// Sets the index of the connection in the group `key`. Does nothing if the connection is not in this group.
    pub(super) fn set_member_index(&mut self, key: LogGroupKey, member_index: u32) {
        let memberships = match self {
            Self::None => &mut [],
            Self::One(membership) => std::slice::from_mut(membership),
            Self::Several(memberships) => memberships,
        };
        let index = memberships.binary_search_by_key(&key, |membership| membership.key);
        if let Ok(index) = index {
            memberships[index].member_index = member_index;
        }
    }
}
